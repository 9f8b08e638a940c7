//! The embedded default: SQLite, one writer thread that commits groups.
