-- +goose Up

ALTER TABLE hubs ADD COLUMN zone TEXT NOT NULL DEFAULT ''; -- of the workers that take its streams, as they name it; empty: any
