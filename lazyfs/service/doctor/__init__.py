"""What `lazyfs doctor` looks at: small checks in tables, each with a bound on its time. Changes nothing that stays."""
