-- A disabled webhook gets nothing and keeps its place; NULL means enabled. Without a default, so
-- that adding the columns to a full table rewrites nothing.
ALTER TABLE webhooks ADD COLUMN IF NOT EXISTS disabled_at TIMESTAMPTZ;
ALTER TABLE webhooks ADD COLUMN IF NOT EXISTS disabled_reason TEXT;
