-- The last warnings of an agent; a full sweep that somebody wants now, since when.
ALTER TABLE contact ADD COLUMN warned TEXT;
ALTER TABLE scanner ADD COLUMN wanted BIGINT;
