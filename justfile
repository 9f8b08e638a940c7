# What there is to do.
default:
    @just --list

# Run every check there is, as CI does.
test:
    cargo xtask test

# Run the tests of one crate.
unit CRATE:
    cargo test -p {{CRATE}}

# Format every Rust file that git tracks.
fmt:
    cargo xtask fmt

# Let clippy look at everything.
lint:
    cargo clippy --workspace --all-targets -- -D warnings
    cargo clippy --workspace --all-targets --all-features -- -D warnings

# Run the simulator.
sim SECONDS="60":
    cargo xtask sim --seconds {{SECONDS}}

# Prove that each closed hazard's test notices when its protection is gone.
hazards ONLY="":
    cargo xtask hazards {{ONLY}}

# Rotate on a Kubernetes cluster, in a namespace of its own.
e2e CONTEXT:
    cargo xtask e2e kubernetes --context {{CONTEXT}}

# Measure the engine.
bench:
    cargo xtask bench engine

# Watch a rotation that drops no request.
demo:
    cargo run --release -- demo

# Check licences, sources and advisories.
deny:
    cargo xtask deny

# Read the documentation of the code.
doc:
    cargo doc --workspace --no-deps --open
