//! TLS for connections that are not HTTP: one provider, and certificates that are always checked.

use std::path::Path;
use std::sync::Arc;

use keywheel_driver::{Refusal, RefusalKind};
use rustls::crypto::ring;
use rustls::pki_types::CertificateDer;
use rustls::pki_types::pem::PemObject;
use rustls::{ClientConfig, RootCertStore};
use rustls_platform_verifier::BuilderVerifierExt;
use tokio_rustls::TlsConnector;

/// Makes connections that are secured by TLS, to servers whose certificate is signed by one of those in a file, else by one whom
/// this machine trusts.
///
/// # Errors
/// A refusal where nobody is known who may sign.
pub(crate) fn connector(ca: Option<&Path>) -> Result<TlsConnector, Refusal> {
    let config = ClientConfig::builder_with_provider(Arc::new(ring::default_provider()))
        .with_safe_default_protocol_versions()
        .expect("the provider knows the protocols");
    let config = match ca {
        Some(ca) => config.with_root_certificates(roots(ca).ok_or_else(|| {
            let message = format!("`ca`: file `{}` holds no certificates", ca.display());
            Refusal::operator(RefusalKind::Local, message)
        })?),
        None => config.with_platform_verifier().map_err(|_| {
            let message = "this machine has no list of whom it trusts";
            Refusal::operator(RefusalKind::Local, message)
        })?,
    };
    Ok(TlsConnector::from(Arc::new(config.with_no_client_auth())))
}

fn roots(file: &Path) -> Option<RootCertStore> {
    let mut roots = RootCertStore::empty();
    for certificate in CertificateDer::pem_file_iter(file).ok()? {
        roots.add(certificate.ok()?).ok()?;
    }
    (!roots.is_empty()).then_some(roots)
}
