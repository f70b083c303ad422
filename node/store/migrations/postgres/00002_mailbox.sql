-- +goose Up

-- The agents that letters are kept for. They have no owner: relays that share a
-- database share the mailboxes. Times are in seconds since 1970.
--
-- last is the cursor of the newest letter there ever was; letters and bytes are
-- the sums over the table letters. Whoever changes letters locks the row here
-- first, until COMMIT: so sums stay exact, and a letter cannot become visible
-- after one with a higher cursor.
CREATE TABLE mailboxes (
	recipient TEXT   NOT NULL PRIMARY KEY,
	version   BIGINT NOT NULL,
	expires   BIGINT NOT NULL,
	last      BIGINT NOT NULL,
	letters   BIGINT NOT NULL DEFAULT 0,
	bytes     BIGINT NOT NULL DEFAULT 0
);

-- expires is the letter's own, until is when this relay drops it. digest says
-- whether two letters are the same.
CREATE TABLE letters (
	recipient TEXT   NOT NULL,
	cursor    BIGINT NOT NULL,
	digest    BYTEA  NOT NULL,
	id        BYTEA  NOT NULL,
	depositor BYTEA  NOT NULL,
	expires   BIGINT NOT NULL,
	until     BIGINT NOT NULL,
	size      BIGINT NOT NULL,
	body      BYTEA  NOT NULL,
	PRIMARY KEY (recipient, cursor),
	UNIQUE (recipient, digest)
);

CREATE INDEX letters_by_depositor ON letters (recipient, depositor, size);
CREATE INDEX letters_by_until ON letters (until);
