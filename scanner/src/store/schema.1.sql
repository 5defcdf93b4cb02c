-- Understood by SQLite and PostgreSQL alike. Times are microseconds since 1970, addresses and names are text.

-- How things stand.
CREATE TABLE scanner (
    vantage TEXT PRIMARY KEY,
    epoch BIGINT NOT NULL,
    sequence BIGINT NOT NULL
);

CREATE TABLE finding (
    vantage TEXT NOT NULL,
    id TEXT NOT NULL,
    node TEXT NOT NULL,
    address TEXT NOT NULL,
    protocol TEXT NOT NULL,
    port BIGINT NOT NULL,
    status TEXT NOT NULL,
    first_seen BIGINT NOT NULL,
    service TEXT,
    PRIMARY KEY (vantage, id)
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

-- Exposures that somebody was told of, and not of their end.
CREATE TABLE episode (
    vantage TEXT NOT NULL,
    finding TEXT NOT NULL,
    body TEXT NOT NULL,
    PRIMARY KEY (vantage, finding)
);

-- What nobody wants to hear of for a while. The same for all vantage points.
CREATE TABLE silence (
    finding TEXT NOT NULL,
    begun BIGINT NOT NULL,
    ends BIGINT NOT NULL,
    author TEXT NOT NULL,
    comment TEXT NOT NULL,
    PRIMARY KEY (finding, begun)
);

-- How far each place that is told has come.
CREATE TABLE sink (
    vantage TEXT NOT NULL,
    name TEXT NOT NULL,
    told BIGINT NOT NULL,
    trouble TEXT,
    PRIMARY KEY (vantage, name)
);

-- What happened.
CREATE TABLE alert (
    vantage TEXT NOT NULL,
    number BIGINT NOT NULL,
    at BIGINT NOT NULL,
    finding TEXT NOT NULL,
    body TEXT NOT NULL,
    PRIMARY KEY (vantage, number)
);

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
CREATE INDEX alert_at ON alert (at);
CREATE INDEX change_at ON change (at);
