-- Understood by SQLite and PostgreSQL alike. Times are microseconds since 1970, addresses and names are text.

-- How things stand.
CREATE TABLE scanner (
    vantage TEXT PRIMARY KEY,
    epoch BIGINT NOT NULL,
    sequence BIGINT NOT NULL
);

CREATE TABLE finding (
    id TEXT PRIMARY KEY,
    node TEXT NOT NULL,
    address TEXT NOT NULL,
    protocol TEXT NOT NULL,
    port BIGINT NOT NULL,
    status TEXT NOT NULL,
    first_seen BIGINT NOT NULL,
    service TEXT,
    vantage TEXT NOT NULL
);

CREATE TABLE seen (
    vantage TEXT NOT NULL,
    address TEXT NOT NULL,
    protocol TEXT NOT NULL,
    port BIGINT NOT NULL,
    node TEXT NOT NULL,
    state TEXT NOT NULL,
    evidence TEXT NOT NULL,
    service TEXT,
    since BIGINT NOT NULL,
    PRIMARY KEY (vantage, address, protocol, port)
);

CREATE TABLE contact (
    vantage TEXT NOT NULL,
    node TEXT NOT NULL,
    asked BIGINT NOT NULL,
    answered BIGINT,
    mode TEXT,
    trouble TEXT,
    PRIMARY KEY (vantage, node)
);

-- What happened.
CREATE TABLE sweep (
    vantage TEXT NOT NULL,
    started BIGINT NOT NULL,
    finished BIGINT NOT NULL,
    complete BIGINT NOT NULL,
    counts TEXT NOT NULL,
    PRIMARY KEY (vantage, started)
);

CREATE TABLE change (
    vantage TEXT NOT NULL,
    at BIGINT NOT NULL,
    address TEXT NOT NULL,
    protocol TEXT NOT NULL,
    port BIGINT NOT NULL,
    state TEXT,
    PRIMARY KEY (vantage, at, address, protocol, port)
);

CREATE TABLE event (
    finding TEXT NOT NULL,
    at BIGINT NOT NULL,
    vantage TEXT NOT NULL,
    status TEXT NOT NULL,
    why TEXT NOT NULL,
    PRIMARY KEY (finding, at, vantage, status)
);

CREATE INDEX event_at ON event (at);
CREATE INDEX sweep_started ON sweep (started);
CREATE INDEX change_at ON change (at);
