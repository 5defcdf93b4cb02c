-- A full sweep that somebody wants now, since when.
ALTER TABLE scanner ADD COLUMN wanted BIGINT;
