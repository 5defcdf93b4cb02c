-- Several vantage points that share the nodes. `memory` is the vantage point whose rows say how things stand at the node.
CREATE TABLE lease (
    node TEXT PRIMARY KEY,
    holder TEXT,
    memory TEXT NOT NULL,
    since BIGINT NOT NULL,
    until BIGINT NOT NULL,
    wanted TEXT
);
-- Until when its scanner is taken to live.
ALTER TABLE scanner ADD COLUMN alive BIGINT;

-- The vantage point that tells it instead, where its scanner has died.
ALTER TABLE alert ADD COLUMN heir TEXT;

-- Ports that a second vantage point shall look at, before they count as closed.
CREATE TABLE look (
    asker TEXT NOT NULL,
    address TEXT NOT NULL,
    protocol TEXT NOT NULL,
    port BIGINT NOT NULL,
    node TEXT NOT NULL,
    asked BIGINT NOT NULL,
    taker TEXT,
    verdict TEXT,
    PRIMARY KEY (asker, address, protocol, port)
);
