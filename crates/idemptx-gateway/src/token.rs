//! Scopes from signed tokens (JWT, RFC 7519).

mod remote_keys;

use std::error::Error;
use std::fmt;
use std::path::Path;
use std::sync::{Arc, Mutex, PoisonError};

use http::request::Parts;
use idemptx::Scope;
use jsonwebtoken::jwk::{AlgorithmParameters, EllipticCurve, Jwk, PublicKeyUse};
use jsonwebtoken::{Algorithm, AlgorithmFamily, DecodingKey, Validation, decode, decode_header};
use serde::Deserialize;
use serde_json::{Map, Value};

pub(crate) use self::remote_keys::RemoteKeys;
use crate::config::{Jwt, JwtKey};

/// Verifies tokens, and takes the scope from a claim.
#[derive(Clone)]
pub(super) struct TokenVerifier(Arc<VerifierState>);

struct VerifierState {
    config: Jwt,
    keys: Keys,
}

enum Keys {
    Local(Arc<[VerificationKey]>),
    Remote {
        remote: Arc<RemoteKeys>,
        /// The keys of the set with this number.
        parsed: Mutex<(u64, Arc<[VerificationKey]>)>,
    },
}

struct VerificationKey {
    /// The key's id, where keys have ids.
    id: Option<String>,
    key: DecodingKey,
    validation: Validation,
}

impl TokenVerifier {
    /// Reads the keys, except those that are at a URL: they are read by `remote`.
    pub(super) fn new(config: &Jwt, remote: Option<Arc<RemoteKeys>>) -> Result<Self, TokenError> {
        let named = &config.algorithms;
        let keys = match &config.key {
            JwtKey::Secret(secret) => {
                let algorithms = algorithms_for(named, &[Algorithm::HS256], AlgorithmFamily::Hmac)?;
                let key = DecodingKey::from_secret(secret.as_bytes());
                let validation = validation(config, &algorithms);
                vec![VerificationKey { id: None, key, validation }]
            }
            JwtKey::Pem(path) => {
                let text = read(path)?;
                let (key, default) = public_key(&text).ok_or_else(|| unusable(path, NO_KEY))?;
                let algorithms = algorithms_for(named, default, key.family())?;
                let validation = validation(config, &algorithms);
                vec![VerificationKey { id: None, key, validation }]
            }
            JwtKey::Set(path) => {
                let set: KeySet =
                    serde_json::from_slice(&read(path)?).map_err(|it| unusable(path, it))?;
                let keys = keys_of_set(config, &set.keys);
                if keys.is_empty() {
                    return Err(unusable(path, NO_KEY));
                }
                keys
            }
            JwtKey::Remote(_) => Vec::new(),
        };
        let keys = match remote {
            Some(remote) => Keys::Remote { remote, parsed: Mutex::new((0, Arc::default())) },
            None => Keys::Local(keys.into()),
        };
        Ok(Self(Arc::new(VerifierState { config: config.clone(), keys })))
    }

    /// Returns the scope that a request's token names, if the token is valid.
    ///
    /// # Security
    ///
    /// Only algorithms of the key's family are accepted, despite the token's header; a token
    /// without an expiry is rejected.
    pub(super) fn scope(&self, parts: &Parts) -> Option<Scope> {
        let VerifierState { config, keys } = &*self.0;
        let current = keys.current(config);
        let mut lines = parts.headers.get_all(&config.header).iter();
        let (Some(line), None) = (lines.next(), lines.next()) else { return None };
        let token = line.to_str().ok()?.trim();
        let token = match token.split_once(' ') {
            Some((scheme, token)) if scheme.eq_ignore_ascii_case("bearer") => token.trim(),
            Some(_) => return None,
            None => token,
        };
        let header = decode_header(token).ok()?;
        let mut candidates =
            current.iter().filter(|key| key.is_for(header.kid.as_deref(), header.alg)).peekable();
        if let (Keys::Remote { remote, .. }, None) = (keys, candidates.peek()) {
            remote.miss();
        }
        // A token or a key without an id: each key that may be the one is tried.
        let claims = candidates
            .find_map(|key| decode::<Map<String, Value>>(token, &key.key, &key.validation).ok())?
            .claims;
        let name = claims.get(&config.claim).filter(|name| match name {
            Value::String(name) => !name.is_empty(),
            Value::Number(_) => true,
            _ => false,
        })?;
        // Two issuers may each have a user of that name, and the number 42 is not the text "42".
        let issuer = claims.get("iss").unwrap_or(&Value::Null);
        Some(Scope::new(format!("{issuer}\n{name}")))
    }
}

impl Keys {
    fn current(&self, config: &Jwt) -> Arc<[VerificationKey]> {
        let (remote, parsed) = match self {
            Self::Local(keys) => return Arc::clone(keys),
            Self::Remote { remote, parsed } => (remote, parsed),
        };
        let mut parsed = parsed.lock().unwrap_or_else(PoisonError::into_inner);
        if parsed.0 != remote.version() {
            let (version, keys) = remote.keys();
            *parsed = (version, keys_of_set(config, &keys).into());
        }
        Arc::clone(&parsed.1)
    }
}

impl VerificationKey {
    fn is_for(&self, id: Option<&str>, algorithm: Algorithm) -> bool {
        let named = match (&self.id, id) {
            (Some(own), Some(id)) => own == id,
            _ => true,
        };
        named && self.validation.algorithms.contains(&algorithm)
    }
}

impl fmt::Debug for TokenVerifier {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Tokens").finish_non_exhaustive()
    }
}

/// A JWK set (RFC 7517 §5); a key of a kind that is not known must not spoil the others.
#[derive(Deserialize)]
struct KeySet {
    keys: Vec<Value>,
}

/// Verification keys that cannot be used.
#[derive(Debug)]
pub struct TokenError(Box<dyn Error + Send + Sync>);

impl fmt::Display for TokenError {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "cannot use the keys for tokens: {}", self.0)
    }
}

impl Error for TokenError {}

/// Returns the checks of a token beside its signature.
fn validation(config: &Jwt, algorithms: &[Algorithm]) -> Validation {
    let first = algorithms.first().copied().unwrap_or_default();
    let mut validation = Validation::new(first);
    validation.algorithms = algorithms.to_vec();
    validation.validate_nbf = true;
    validation.validate_aud = !config.audience.is_empty();
    let mut required = vec!["exp"];
    if !config.audience.is_empty() {
        validation.set_audience(&config.audience);
        required.push("aud");
    }
    if !config.issuer.is_empty() {
        validation.set_issuer(&config.issuer);
        required.push("iss");
    }
    validation.set_required_spec_claims(&required);
    validation
}

/// Returns the usable keys of a set, which also has keys for other purposes, and of kinds that are
/// not known here.
fn keys_of_set(config: &Jwt, set: &[Value]) -> Vec<VerificationKey> {
    let named = &config.algorithms;
    let key = |jwk: &Value| {
        let mut jwk = Jwk::deserialize(jwk).ok()?;
        let (key, possible) = from_jwk(&jwk)?;
        let allowed = |it: &Algorithm| named.is_empty() || named.contains(it);
        let algorithms: Vec<_> = possible.into_iter().filter(allowed).collect();
        if algorithms.is_empty() {
            return None;
        }
        let validation = validation(config, &algorithms);
        Some(VerificationKey { id: jwk.common.key_id.take(), key, validation })
    };
    set.iter().filter_map(key).collect()
}

/// Returns how many keys of a set verify signatures.
fn usable_keys(set: &[Value]) -> usize {
    let is_usable = |jwk: &&Value| Jwk::deserialize(*jwk).is_ok_and(|it| from_jwk(&it).is_some());
    set.iter().filter(is_usable).count()
}

/// Returns the configured algorithms, which must fit the key's family, or the default.
fn algorithms_for(
    named: &[Algorithm],
    default: &[Algorithm],
    family: AlgorithmFamily,
) -> Result<Vec<Algorithm>, TokenError> {
    if named.iter().any(|algorithm| algorithm.family() != family) {
        return Err(TokenError(
            "`algorithms` contains one that does not fit this kind of key".into(),
        ));
    }
    Ok(if named.is_empty() { default.to_vec() } else { named.to_vec() })
}

/// Parses a public key, and returns its default algorithms.
fn public_key(pem: &[u8]) -> Option<(DecodingKey, &'static [Algorithm])> {
    let rsa = DecodingKey::from_rsa_pem(pem).map(|key| (key, RSA));
    let curve = || DecodingKey::from_ec_pem(pem).map(|key| (key, CURVE));
    let edwards = || DecodingKey::from_ed_pem(pem).map(|key| (key, EDWARDS));
    rsa.or_else(|_| curve()).or_else(|_| edwards()).ok()
}

/// Returns a key that verifies signatures, with the algorithms that it may be used with: the one
/// that it states (RFC 7517 §4.4), or those of its kind.
fn from_jwk(jwk: &Jwk) -> Option<(DecodingKey, Vec<Algorithm>)> {
    if !matches!(jwk.common.public_key_use, None | Some(PublicKeyUse::Signature)) {
        return None;
    }
    let algorithms = match (&jwk.common.key_algorithm, &jwk.algorithm) {
        (Some(stated), _) => vec![stated.to_string().parse().ok()?],
        (None, AlgorithmParameters::RSA(_)) => RSA_FAMILY.to_vec(),
        (None, AlgorithmParameters::EllipticCurve(curve)) => match curve.curve {
            EllipticCurve::P256 => vec![Algorithm::ES256],
            EllipticCurve::P384 => vec![Algorithm::ES384],
            _ => return None,
        },
        (None, AlgorithmParameters::OctetKeyPair(_)) => EDWARDS.to_vec(),
        // A secret in a set has to state what it is for.
        (None, _) => return None,
    };
    Some((DecodingKey::from_jwk(jwk).ok()?, algorithms))
}

fn read(path: &Path) -> Result<Vec<u8>, TokenError> {
    std::fs::read(path).map_err(|error| unusable(path, error))
}

fn unusable(path: &Path, error: impl fmt::Display) -> TokenError {
    TokenError(format!("{}: {error}", path.display()).into())
}

const NO_KEY: &str = "no key with a supported algorithm";
const RSA: &[Algorithm] = &[Algorithm::RS256];
const RSA_FAMILY: [Algorithm; 6] = [
    Algorithm::RS256,
    Algorithm::RS384,
    Algorithm::RS512,
    Algorithm::PS256,
    Algorithm::PS384,
    Algorithm::PS512,
];
const CURVE: &[Algorithm] = &[Algorithm::ES256];
const EDWARDS: &[Algorithm] = &[Algorithm::EdDSA];
