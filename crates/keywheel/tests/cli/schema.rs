use crate::keywheel;

#[test]
fn the_schema_is_a_schema() {
    let ran = keywheel("/".as_ref(), &["schema"]);
    assert_eq!((ran.code, ran.stderr.as_str()), (Some(0), ""));
    assert!(jsonschema::meta::validate(&ran.json()).is_ok());
    assert!(jsonschema::validator_for(&ran.json()).is_ok());
}
