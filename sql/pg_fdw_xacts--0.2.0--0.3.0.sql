-- Upgrade from 0.2.0. It takes no lock on the decisions: transactions may be in doubt meanwhile.

-- Where a participant was: two servers of one image cannot be told apart otherwise. Not known of those from before.
ALTER TABLE fdw_xacts.participant ADD COLUMN address text COLLATE "C";
