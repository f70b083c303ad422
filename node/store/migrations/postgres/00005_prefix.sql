-- +goose Up

-- Ids are looked up by their first digits, so their order is that of bytes. In some
-- languages it is another: in Danish, aa comes after z.
ALTER TABLE market_requests
	ALTER COLUMN id TYPE TEXT COLLATE "C";
ALTER TABLE market_negotiations
	ALTER COLUMN id       TYPE TEXT COLLATE "C",
	ALTER COLUMN contract TYPE TEXT COLLATE "C";
