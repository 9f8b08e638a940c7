//! The example's database, from the image that is made here: it becomes healthy, asks for its password, and keeps what it has.

use super::shop::Shop;

/// Begins the database with a password that nobody has chosen, asks it from outside its container, and begins it anew.
const USED: &str = r#"
export DB_IMAGE=keywheel-example-db DB_PASSWORD="$(od -An -N16 -tx1 /dev/urandom | tr -d ' \n')"
up() {
    docker compose --profile database up -d --wait db
    id=$(docker compose --profile database ps -q db)
    at=$(docker inspect -f '{{range .NetworkSettings.Networks}}{{.IPAddress}}{{end}}' "$id")
}
ask() { PGPASSWORD=$1 psql -h "$at" -U postgres -Atc "$2" 2>&1 || echo refused; }

up
echo "ports: $(docker port "$id" | wc -l)"
echo "told: $(docker inspect "$id" | grep -c "$DB_PASSWORD")"
echo "another password: $(ask another 'SELECT 1' | tail -n 1)"
echo "made: $(ask "$DB_PASSWORD" 'CREATE TABLE plans AS SELECT 7 AS days')"
docker compose --profile database down
up
echo "kept: $(ask "$DB_PASSWORD" 'SELECT days FROM plans')"
"#;

#[test]
fn the_database_asks_for_its_password_and_keeps_what_it_has() {
    let Some(mut shop) = Shop::copy() else { return };
    let built = shop.sh("cargo xtask example --database");
    if built.said.contains("PostgreSQL is not installed") {
        println!("skipped: the database of the example (PostgreSQL is not installed)");
        return;
    }
    assert_eq!(built.code, 0, "{}", built.said);
    let said = shop.well(USED);
    let wanted = ["ports: 0", "told: 0", "another password: refused", "made: SELECT 1", "kept: 7"];
    for line in wanted {
        assert!(said.lines().any(|said| said == line), "`{line}` is said:\n{said}");
    }
}
