-- The last alert in the latest message to the place, of which it may not be known whether it has arrived.
ALTER TABLE sink ADD COLUMN offered BIGINT;
