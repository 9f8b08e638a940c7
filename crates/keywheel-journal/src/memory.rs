//! A journal in memory, for simulation and tests: the same rules, no durability.
