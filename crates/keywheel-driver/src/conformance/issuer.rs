//! The suite that every issuer passes.
