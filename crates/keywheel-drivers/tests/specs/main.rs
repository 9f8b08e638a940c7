//! Every request that the drivers send, and every answer that the twins give, is one that the provider's own specification knows.

#![expect(clippy::unwrap_used, reason = "a test may panic in its helpers too")]
#![expect(clippy::print_stderr, reason = "a test that is skipped says so")]

mod checker;
mod openai;
mod openrouter;

use std::sync::Arc;

use keywheel_core::plan::Label;
use keywheel_core::secret::{Credential, SecretValue};
use keywheel_core::version::IssuedId;
use keywheel_driver::Issuer;
use keywheel_driver::issuer::Mint;
use keywheel_drivers::{Build, Context, IssuerConfig};
use serde_json::Value;

/// Builds an issuer whose admin credential stands in `admin.key`.
fn issuer(folder: &tempfile::TempDir, admin: &str, config: Value) -> Arc<dyn Issuer> {
    std::fs::write(folder.path().join("admin.key"), admin).unwrap();
    let config: IssuerConfig = serde_json::from_value(config).unwrap();
    config.build(&Context::at(folder.path())).unwrap_or_else(|refusal| panic!("{refusal}"))
}

fn credential(value: &str) -> Credential {
    Credential::of_value(SecretValue::new(value.into()))
}

/// Mints under a label, in place of a version.
async fn mint(
    issuer: &dyn Issuer,
    label: &str,
    previous: Option<&IssuedId>,
) -> (IssuedId, Credential) {
    let label = Label(label.into());
    let request = Mint { previous, ..Mint::new(&label) };
    let minted = issuer.mint(&request).await.unwrap_or_else(|error| panic!("{error}"));
    (minted.issued.unwrap(), minted.credential.unwrap())
}
