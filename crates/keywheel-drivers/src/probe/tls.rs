//! `tls`: a server whose certificate is accepted, and has enough of its life left.
//!
//! What is left is counted as a share of the whole life: a number of days that is plenty for a certificate of a year is more
//! than one of a week ever has.

use std::sync::Arc;
use std::time::{Duration as StdDuration, SystemTime};

use async_trait::async_trait;
use keywheel_core::time::Span;
use keywheel_driver::duration::Duration;
use keywheel_driver::probe::{Asked, Health, Probe};
use keywheel_driver::{CallError, Refusal, RefusalKind};
use rustls::client::danger::{HandshakeSignatureValid, ServerCertVerified, ServerCertVerifier};
use rustls::crypto::{CryptoProvider, ring, verify_tls12_signature, verify_tls13_signature};
use rustls::pki_types::{CertificateDer, ServerName, UnixTime};
use rustls::{CertificateError, ClientConfig, DigitallySignedStruct, SignatureScheme};
use schemars::JsonSchema;
use serde::{Deserialize, Serialize};
use tokio::net::TcpStream;
use tokio_rustls::TlsConnector;
use x509_cert::Certificate;
use x509_cert::der::Decode;

use super::tcp::Address;
use crate::{Build, Context};

/// A server whose certificate is accepted for the name that is asked for, and has enough of its life left.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
#[serde(deny_unknown_fields)]
pub struct Config {
    /// Name of the host, which is asked for, and the port: `shop.example:443`.
    pub address: String,
    /// The least share of its life, in percent, that the certificate must have left. Above the share at which whatever renews
    /// it does so, the probe is red in between.
    #[serde(default = "default_remaining")]
    #[schemars(range(max = 99))]
    pub remaining: u8,
    /// Whether the chain must lead to someone whom this machine trusts, and the certificate must be for the name.
    #[serde(default = "yes")]
    pub verify: bool,
    /// How long connection and handshake may take, each, before they count as red.
    #[serde(default = "default_within")]
    pub within: Duration,
}

fn default_remaining() -> u8 {
    25
}

fn yes() -> bool {
    true
}

fn default_within() -> Duration {
    Span::seconds(5).into()
}

impl Build for Config {
    type Driver = dyn Probe;

    fn build(&self, _context: &Context) -> Result<Arc<dyn Probe>, Refusal> {
        let refused = |why: &str| Refusal::operator(RefusalKind::Unsupported, why);
        let address = Address::parse(&self.address)?;
        let name = ServerName::try_from(address.host.clone())
            .map_err(|_| refused("`address` names no host that a certificate could be for"))?;
        if self.remaining > 99 {
            return Err(refused("`remaining` is a share in percent, up to 99"));
        }
        Ok(Arc::new(Tls { address, name, config: self.clone() }))
    }
}

struct Tls {
    address: Address,
    name: ServerName<'static>,
    config: Config,
}

#[async_trait]
impl Probe for Tls {
    async fn ask(&self, _asked: &Asked) -> Result<Health, CallError> {
        let provider = Arc::new(ring::default_provider());
        let verifier: Arc<dyn ServerCertVerifier> = match self.config.verify {
            true => trusted_by_this_machine(Arc::clone(&provider)).await?,
            false => Arc::new(Anyone(Arc::clone(&provider))),
        };
        Ok(self.seen_with(provider, verifier).await)
    }
}

/// Reads anew whom this machine trusts; off the runtime's threads, since that means files.
async fn trusted_by_this_machine(
    provider: Arc<CryptoProvider>,
) -> Result<Arc<dyn ServerCertVerifier>, Refusal> {
    let read = move || rustls_platform_verifier::Verifier::new(provider);
    let verifier = tokio::task::spawn_blocking(read).await.expect("reading does not panic");
    let refused = |_| Refusal::operator(RefusalKind::Local, "this machine trusts no certificates");
    Ok(Arc::new(verifier.map_err(refused)?))
}

impl Tls {
    async fn seen_with(
        &self,
        provider: Arc<CryptoProvider>,
        verifier: Arc<dyn ServerCertVerifier>,
    ) -> Health {
        let stream = match self.address.connect(self.config.within.span()).await {
            Ok(stream) => stream,
            Err(why) => return Health::Red(why),
        };
        let health = match self.leaf(stream, provider, verifier).await {
            Ok(leaf) => self.judge(&leaf),
            Err(why) => Err(why),
        };
        match health {
            Ok(()) => Health::Green,
            Err(why) => Health::Red(format!("`{}`: {why}", self.address.host)),
        }
    }

    /// Shakes hands and returns the server's own certificate.
    async fn leaf(
        &self,
        stream: TcpStream,
        provider: Arc<CryptoProvider>,
        verifier: Arc<dyn ServerCertVerifier>,
    ) -> Result<CertificateDer<'static>, String> {
        let config = ClientConfig::builder_with_provider(provider)
            .with_safe_default_protocol_versions()
            .expect("the provider knows the protocols")
            .dangerous()
            .with_custom_certificate_verifier(verifier)
            .with_no_client_auth();
        let within = self.config.within.span();
        let handshake = TlsConnector::from(Arc::new(config)).connect(self.name.clone(), stream);
        let stream = tokio::time::timeout(within.into(), handshake)
            .await
            .map_err(|_| format!("no handshake within {within}"))?
            .map_err(|error| in_words(&error).to_owned())?;
        let certificates = stream.get_ref().1.peer_certificates();
        let leaf = certificates.and_then(<[_]>::first);
        leaf.map(|leaf| leaf.clone().into_owned()).ok_or_else(|| "shows no certificate".into())
    }

    fn judge(&self, leaf: &CertificateDer<'_>) -> Result<(), String> {
        let certificate = Certificate::from_der(leaf);
        let certificate = certificate.map_err(|_| "the certificate cannot be read".to_owned())?;
        let validity = certificate.tbs_certificate().validity();
        let since_epoch = SystemTime::now().duration_since(SystemTime::UNIX_EPOCH);
        enough(
            validity.not_before.to_unix_duration(),
            validity.not_after.to_unix_duration(),
            since_epoch.unwrap_or_default(),
            self.config.remaining,
        )
    }
}

/// Judges how much of a life is left.
fn enough(
    begin: StdDuration,
    end: StdDuration,
    now: StdDuration,
    percent: u8,
) -> Result<(), String> {
    if now < begin {
        return Err("the certificate is not valid yet".into());
    }
    let life = end.saturating_sub(begin).as_millis();
    let left = end.saturating_sub(now).as_millis();
    if left == 0 {
        return Err("the certificate has expired".into());
    }
    if left * 100 >= life * u128::from(percent) {
        return Ok(());
    }
    let share = left * 100 / life;
    let left = Span::millis(u64::try_from(left).unwrap_or(u64::MAX));
    Err(format!("the certificate has {share} % of its life left ({left}), and not {percent} %"))
}

fn in_words(error: &std::io::Error) -> &'static str {
    let error = error.get_ref().and_then(|inner| inner.downcast_ref::<rustls::Error>());
    let Some(error) = error else { return "the connection ended in the handshake" };
    let rustls::Error::InvalidCertificate(why) = error else {
        return "no secure connection: the protocol was not accepted";
    };
    match why {
        CertificateError::Expired | CertificateError::ExpiredContext { .. } => {
            "the certificate has expired"
        }
        CertificateError::NotValidYet | CertificateError::NotValidYetContext { .. } => {
            "the certificate is not valid yet"
        }
        CertificateError::NotValidForName | CertificateError::NotValidForNameContext { .. } => {
            "the certificate is for another name"
        }
        CertificateError::UnknownIssuer => {
            "the certificate comes from no one whom this machine trusts"
        }
        _ => "the certificate is not accepted",
    }
}

/// Accepts whatever certificate there is. The handshake still proves that the server has its key.
#[derive(Debug)]
struct Anyone(Arc<CryptoProvider>);

impl ServerCertVerifier for Anyone {
    fn verify_server_cert(
        &self,
        _end_entity: &CertificateDer<'_>,
        _intermediates: &[CertificateDer<'_>],
        _server_name: &ServerName<'_>,
        _ocsp_response: &[u8],
        _now: UnixTime,
    ) -> Result<ServerCertVerified, rustls::Error> {
        Ok(ServerCertVerified::assertion())
    }

    fn verify_tls12_signature(
        &self,
        message: &[u8],
        cert: &CertificateDer<'_>,
        dss: &DigitallySignedStruct,
    ) -> Result<HandshakeSignatureValid, rustls::Error> {
        verify_tls12_signature(message, cert, dss, &self.0.signature_verification_algorithms)
    }

    fn verify_tls13_signature(
        &self,
        message: &[u8],
        cert: &CertificateDer<'_>,
        dss: &DigitallySignedStruct,
    ) -> Result<HandshakeSignatureValid, rustls::Error> {
        verify_tls13_signature(message, cert, dss, &self.0.signature_verification_algorithms)
    }

    fn supported_verify_schemes(&self) -> Vec<SignatureScheme> {
        self.0.signature_verification_algorithms.supported_schemes()
    }
}

#[cfg(test)]
mod tests {
    use rcgen::{BasicConstraints, CertificateParams, CertifiedIssuer, DnType, IsCa, KeyPair};
    use rustls::RootCertStore;
    use rustls::client::WebPkiServerVerifier;
    use rustls::pki_types::PrivatePkcs8KeyDer;
    use tokio::net::TcpListener;
    use tokio_rustls::TlsAcceptor;

    use super::*;

    const HOUR: StdDuration = StdDuration::from_secs(3_600);

    /// An authority of the test's own, and someone who trusts it alone.
    struct Authority(CertifiedIssuer<'static, KeyPair>);

    impl Authority {
        fn new(name: &str) -> Self {
            let mut params = CertificateParams::new(Vec::new()).unwrap();
            params.distinguished_name.push(DnType::CommonName, name);
            params.is_ca = IsCa::Ca(BasicConstraints::Unconstrained);
            Self(CertifiedIssuer::self_signed(params, KeyPair::generate().unwrap()).unwrap())
        }

        fn trusted(&self) -> Arc<dyn ServerCertVerifier> {
            let mut roots = RootCertStore::empty();
            roots.add(self.0.der().clone()).unwrap();
            let provider = Arc::new(ring::default_provider());
            WebPkiServerVerifier::builder_with_provider(roots.into(), provider).build().unwrap()
        }

        /// Serves a certificate for a name that began and ends so long from now.
        async fn serve(&self, name: &str, age: StdDuration, left: StdDuration) -> String {
            let epoch = rcgen::date_time_ymd(1970, 1, 1);
            let now = SystemTime::now().duration_since(SystemTime::UNIX_EPOCH).unwrap();
            let mut params = CertificateParams::new([name.to_owned()]).unwrap();
            params.not_before = epoch + (now - age);
            params.not_after = epoch + (now + left);
            let key = KeyPair::generate().unwrap();
            let leaf = params.signed_by(&key, &self.0).unwrap();
            let key = PrivatePkcs8KeyDer::from(key.serialize_der());
            let provider = Arc::new(ring::default_provider());
            let config = rustls::ServerConfig::builder_with_provider(provider)
                .with_safe_default_protocol_versions()
                .unwrap()
                .with_no_client_auth()
                .with_single_cert(vec![leaf.der().clone()], key.into())
                .unwrap();
            let acceptor = TlsAcceptor::from(Arc::new(config));
            let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
            let address = format!("localhost:{}", listener.local_addr().unwrap().port());
            tokio::spawn(async move {
                while let Ok((stream, _)) = listener.accept().await {
                    acceptor.accept(stream).await.ok();
                }
            });
            address
        }
    }

    fn config(address: String) -> Config {
        serde_json::from_value(serde_json::json!({ "address": address, "within": "60s" })).unwrap()
    }

    fn built(config: &Config) -> Tls {
        let address = Address::parse(&config.address).unwrap();
        let name = address.host.clone().try_into().unwrap();
        Tls { address, name, config: config.clone() }
    }

    async fn seen(authority: &Authority, address: String) -> Health {
        let tls = built(&config(address));
        tls.seen_with(Arc::new(ring::default_provider()), authority.trusted()).await
    }

    fn red(why: &str) -> Health {
        Health::Red(format!("`localhost`: {why}"))
    }

    #[tokio::test]
    async fn the_share_of_its_life_that_is_left_decides() {
        let authority = Authority::new("ours");
        let fresh = authority.serve("localhost", HOUR, HOUR * 2).await;
        assert_eq!(seen(&authority, fresh).await, Health::Green);
        let worn = authority.serve("localhost", HOUR * 24 * 80, HOUR * 24 * 10).await;
        let Health::Red(why) = seen(&authority, worn).await else { panic!("it is green") };
        assert!(
            why.starts_with("`localhost`: the certificate has 11 % of its life left (9 d 23 h"),
            "{why}"
        );
    }

    #[tokio::test]
    async fn a_certificate_that_is_not_accepted_is_red() {
        let authority = Authority::new("ours");
        let other = authority.serve("elsewhere.example", HOUR, HOUR * 2).await;
        assert_eq!(seen(&authority, other).await, red("the certificate is for another name"));
        let past = authority.serve("localhost", HOUR * 2, HOUR).await;
        let stranger = seen(&Authority::new("another"), past).await;
        let why = "the certificate comes from no one whom this machine trusts";
        assert_eq!(stranger, red(why));
    }

    #[tokio::test]
    async fn this_machine_does_not_trust_a_stranger_and_can_be_told_not_to_care() {
        let authority = Authority::new("ours");
        let mut config = config(authority.serve("elsewhere.example", HOUR, HOUR * 2).await);
        let context = Context::at("/");
        let asked = config.build(&context).unwrap().ask(&crate::probe::NOW).await;
        assert!(!matches!(asked, Ok(Health::Green)), "{asked:?}");
        config.verify = false;
        assert_eq!(
            config.build(&context).unwrap().ask(&crate::probe::NOW).await,
            Ok(Health::Green)
        );
        config.remaining = 70;
        assert!(matches!(
            config.build(&context).unwrap().ask(&crate::probe::NOW).await,
            Ok(Health::Red(_))
        ));
    }

    #[tokio::test]
    async fn what_speaks_no_tls_is_red() {
        let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
        let address = format!("localhost:{}", listener.local_addr().unwrap().port());
        let silent = async |config: Config| {
            built(&config)
                .seen_with(Arc::new(ring::default_provider()), Authority::new("ours").trusted())
                .await
        };
        let mut hasty = config(address.clone());
        hasty.within = Span::millis(200).into();
        assert_eq!(silent(hasty).await, red("no handshake within 200 ms"));
        tokio::spawn(async move {
            use tokio::io::AsyncWriteExt;
            while let Ok((mut stream, _)) = listener.accept().await {
                stream.write_all(b"220 mail.example ESMTP\r\n").await.ok();
            }
        });
        let why = "no secure connection: the protocol was not accepted";
        assert_eq!(silent(config(address)).await, red(why));
    }

    #[test]
    fn a_life_is_judged_by_its_share_however_short() {
        let at = StdDuration::from_secs;
        let judged = |now, percent| enough(at(1_000), at(1_100), at(now), percent);
        assert_eq!(judged(1_075, 25), Ok(()));
        assert_eq!(judged(1_099, 0), Ok(()));
        let worn = "the certificate has 24 % of its life left (24 s), and not 25 %";
        assert_eq!(judged(1_076, 25), Err(worn.into()));
        for percent in [0, 25] {
            assert_eq!(judged(999, percent), Err("the certificate is not valid yet".into()));
            assert_eq!(judged(1_100, percent), Err("the certificate has expired".into()));
        }
        let backwards = enough(at(1_100), at(1_000), at(1_200), 25);
        assert_eq!(backwards, Err("the certificate has expired".into()));
    }

    #[test]
    fn only_a_host_and_a_share_are_taken() {
        let context = Context::at("/");
        let mut config = config("shop.example:443".into());
        assert_eq!((config.remaining, config.verify), (25, true));
        assert!(config.build(&context).is_ok());
        config.remaining = 100;
        assert!(config.build(&context).is_err());
        config = Config { address: "-:443".into(), remaining: 25, ..config };
        assert!(config.build(&context).is_err());
    }
}
