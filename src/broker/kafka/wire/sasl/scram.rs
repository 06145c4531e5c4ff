//! SCRAM (RFC 5802, RFC 7677): both sides prove that they know the password, and neither sends it. Pure.

use std::fmt;

use base64::Engine as _;
use base64::engine::general_purpose::STANDARD as BASE64;
use hmac::{EagerHash, Hmac, KeyInit, Mac};
use sha2::Digest;
pub(super) use sha2::{Sha256, Sha512};

use crate::broker::kafka::wire::error::{WireError, WireErrorKind, words};
use crate::spec::Secret;

/// The fewest iterations that are accepted (RFC 7677; Apache Kafka's own minimum too): fewer would let a false broker
/// try passwords against the proof.
const ITERATIONS_MIN: u32 = 4096;
/// The most iterations that are computed, some tens of milliseconds. Apache Kafka allows 16,384.
const ITERATIONS_MAX: u32 = 131_072;

/// Why the broker's side of an authentication does not hold.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub(super) enum ScramError {
    /// A message that is none of SCRAM.
    #[error("the broker's answer is not SCRAM: {0}")]
    Malformed(&'static str),
    /// A nonce that does not begin with this client's: the answer belongs to another authentication.
    #[error("the broker answered with a nonce that is not ours")]
    Nonce,
    /// A number of iterations that is not accepted.
    #[error("the broker asks for {0} iterations, where {ITERATIONS_MIN} to {ITERATIONS_MAX} are accepted")]
    Iterations(u32),
    /// The broker's own words.
    #[error("{0}")]
    Refused(String),
    /// The broker does not know the password itself.
    #[error("the broker could not prove that it knows the password")]
    Signature,
}

/// A nonce of 144 random bits.
///
/// # Errors
/// When this system gives no random numbers.
pub(super) fn nonce(peer: &str) -> Result<String, WireError> {
    let mut bytes = [0; 18];
    let random = rustls::crypto::ring::default_provider().secure_random.fill(&mut bytes);
    random.map_err(|_| WireError::new(WireErrorKind::Unreachable, peer, "this system gives no random numbers"))?;
    Ok(BASE64.encode(bytes))
}

/// The three functions of RFC 5802 that depend on the hash.
#[derive(Clone, Copy)]
struct Functions {
    salted_password: fn(&[u8], &[u8], u32) -> Vec<u8>,
    hmac: fn(&[u8], &[u8]) -> Vec<u8>,
    hash: fn(&[u8]) -> Vec<u8>,
    verify: fn(&[u8], &[u8], &[u8]) -> bool,
}

/// A hash that SCRAM can be made of.
pub(super) trait Hash: Digest + EagerHash {}

impl Hash for Sha256 {}
impl Hash for Sha512 {}

fn mac<H: Hash>(key: &[u8], text: &[u8]) -> Option<Hmac<H>> {
    // Keys of any length are taken: there is no error.
    let mut mac = <Hmac<H> as KeyInit>::new_from_slice(key).ok()?;
    mac.update(text);
    Some(mac)
}

impl Functions {
    fn of<H: Hash>() -> Self {
        Self {
            salted_password: |password, salt, iterations| {
                let mut salted = vec![0; <H as Digest>::output_size()];
                pbkdf2::pbkdf2_hmac::<H>(password, salt, iterations, &mut salted);
                salted
            },
            hmac: |key, text| mac::<H>(key, text).map_or_else(Vec::new, |mac| mac.finalize().into_bytes().to_vec()),
            hash: |bytes| H::digest(bytes).to_vec(),
            verify: |key, text, signature| mac::<H>(key, text).is_some_and(|mac| mac.verify_slice(signature).is_ok()),
        }
    }
}

/// An authentication whose first message was sent.
pub(super) struct Scram {
    functions: Functions,
    password: Secret,
    nonce: String,
    first_bare: String,
}

/// What the broker must prove; its Debug shows nothing.
pub(super) struct ServerProof {
    functions: Functions,
    server_key: Vec<u8>,
    auth_message: String,
}

impl fmt::Debug for ServerProof {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("ServerProof")
    }
}

impl Scram {
    /// Begins an authentication with a nonce that was never used before; gives the client's first message.
    pub(super) fn begin<H: Hash>(username: &str, password: &Secret, nonce: String) -> (Self, Vec<u8>) {
        let name = username.replace('=', "=3D").replace(',', "=2C");
        let first_bare = format!("n={name},r={nonce}");
        let message = format!("n,,{first_bare}").into_bytes();
        (Self { functions: Functions::of::<H>(), password: password.clone(), nonce, first_bare }, message)
    }

    /// Answers the broker's first message with the client's proof; gives what the broker must prove in turn.
    pub(super) fn prove(self, challenge: &[u8]) -> Result<(Vec<u8>, ServerProof), ScramError> {
        let challenge = std::str::from_utf8(challenge).map_err(|_| ScramError::Malformed("not UTF-8"))?;
        let Challenge { nonce, salt, iterations } = Challenge::parse(challenge)?;
        if !nonce.starts_with(&self.nonce) || nonce.len() == self.nonce.len() {
            return Err(ScramError::Nonce);
        }
        if !(ITERATIONS_MIN..=ITERATIONS_MAX).contains(&iterations) {
            return Err(ScramError::Iterations(iterations));
        }
        let Functions { salted_password, hmac, hash, .. } = self.functions;
        let salted = salted_password(self.password.0.as_bytes(), &salt, iterations);
        // "biws" is "n,,": no channel binding, no authorization id.
        let without_proof = format!("c=biws,r={nonce}");
        let auth_message = format!("{},{challenge},{without_proof}", self.first_bare);
        let client_key = hmac(&salted, b"Client Key");
        let signature = hmac(&hash(&client_key), auth_message.as_bytes());
        let proof: Vec<u8> = client_key.iter().zip(&signature).map(|(key, signature)| key ^ signature).collect();
        let message = format!("{without_proof},p={}", BASE64.encode(proof)).into_bytes();
        let server_key = hmac(&salted, b"Server Key");
        Ok((message, ServerProof { functions: self.functions, server_key, auth_message }))
    }
}

impl ServerProof {
    /// Checks the broker's last message.
    pub(super) fn verify(&self, message: &[u8]) -> Result<(), ScramError> {
        let message = std::str::from_utf8(message).map_err(|_| ScramError::Malformed("not UTF-8"))?;
        // Extensions may follow.
        let first = message.split(',').next().unwrap_or_default();
        if let Some(error) = first.strip_prefix("e=") {
            return Err(ScramError::Refused(words(error)));
        }
        let signature = first.strip_prefix("v=").ok_or(ScramError::Malformed("no signature"))?;
        let signature = BASE64.decode(signature).map_err(|_| ScramError::Malformed("a signature not in base64"))?;
        let holds = (self.functions.verify)(&self.server_key, self.auth_message.as_bytes(), &signature);
        if holds { Ok(()) } else { Err(ScramError::Signature) }
    }
}

/// The broker's first message.
struct Challenge<'a> {
    nonce: &'a str,
    salt: Vec<u8>,
    iterations: u32,
}

impl<'a> Challenge<'a> {
    fn parse(message: &'a str) -> Result<Self, ScramError> {
        if let Some(error) = message.strip_prefix("e=") {
            return Err(ScramError::Refused(words(error)));
        }
        let mut fields = message.split(',');
        let mut field = |name, missing| {
            let value = fields.next().and_then(|field| field.strip_prefix(name));
            value.ok_or(ScramError::Malformed(missing))
        };
        // A mandatory extension ("m=") would stand in the nonce's place, and none is known here.
        let nonce = field("r=", "no nonce")?;
        let salt = BASE64.decode(field("s=", "no salt")?).map_err(|_| ScramError::Malformed("a salt not in base64"))?;
        let iterations = field("i=", "no number of iterations")?.parse();
        let iterations = iterations.map_err(|_| ScramError::Malformed("iterations that are not a number"))?;
        Ok(Self { nonce, salt, iterations })
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const FIRST: &str = "r=rOprNGfwEbeRWgbNEkqO%hvYDpWUa2RaTCAfuxFIlj)hNlF$k0,s=W22ZaJ0SNY7soEsUEjb6gQ==,i=4096";

    /// The authentication of RFC 7677, section 3.
    fn pencil(password: &str) -> (Scram, Vec<u8>) {
        Scram::begin::<Sha256>("user", &Secret(password.into()), "rOprNGfwEbeRWgbNEkqO".to_owned())
    }

    #[test]
    fn the_example_of_rfc_7677() {
        let (scram, first) = pencil("pencil");
        assert_eq!(first, b"n,,n=user,r=rOprNGfwEbeRWgbNEkqO");
        let (message, proof) = scram.prove(FIRST.as_bytes()).unwrap();
        let expected = "c=biws,r=rOprNGfwEbeRWgbNEkqO%hvYDpWUa2RaTCAfuxFIlj)hNlF$k0,\
                        p=dHzbZapWIk4jUhN+Ute9ytag9zjfMHgsqmmiz7AndVQ=";
        assert_eq!(String::from_utf8(message).unwrap(), expected);
        assert_eq!(proof.verify(b"v=6rriTRBi23WpRR/wtup+mMhUZUn/dB5nLTJRsjl95G4="), Ok(()));
        assert_eq!(proof.verify(b"v=6rriTRBi23WpRR/wtup+mMhUZUn/dB5nLTJRsjl95G4=,x=more"), Ok(()));
        assert_eq!(proof.verify(b"v=7rriTRBi23WpRR/wtup+mMhUZUn/dB5nLTJRsjl95G4="), Err(ScramError::Signature));
        assert_eq!(proof.verify(b"v="), Err(ScramError::Signature));
        assert_eq!(proof.verify(b"e=other-error"), Err(ScramError::Refused("other-error".into())));
        assert_eq!(proof.verify(b""), Err(ScramError::Malformed("no signature")));
        assert_eq!(proof.verify(b"\xff"), Err(ScramError::Malformed("not UTF-8")));
    }

    #[test]
    fn a_broker_that_does_not_know_the_password_is_found_out() {
        let (_, proof) = pencil("pen").0.prove(FIRST.as_bytes()).unwrap();
        let signature = b"v=6rriTRBi23WpRR/wtup+mMhUZUn/dB5nLTJRsjl95G4=";
        assert_eq!(proof.verify(signature), Err(ScramError::Signature));
    }

    #[test]
    fn what_is_no_challenge_is_refused() {
        let ours = "rOprNGfwEbeRWgbNEkqO";
        let of = |text: &str| pencil("pencil").0.prove(text.as_bytes()).map(|_| ()).unwrap_err();
        assert_eq!(of("r=somebody-else,s=W22Z,i=4096"), ScramError::Nonce);
        assert_eq!(of(&format!("r={ours},s=W22Z,i=4096")), ScramError::Nonce);
        assert_eq!(of(&format!("r={ours}x,s=W22Z,i=4095")), ScramError::Iterations(4095));
        assert_eq!(of(&format!("r={ours}x,s=W22Z,i=4294967295")), ScramError::Iterations(u32::MAX));
        assert_eq!(of("e=unknown-user"), ScramError::Refused("unknown-user".into()));
        let bad = ["", "m=ext,r=x,s=W22Z,i=4096", "r=x", "r=x,s=*,i=4096", "r=x,s=W22Z,i=-1", "r=x,i=4096,s=W22Z"];
        for bad in bad {
            assert!(matches!(of(bad), ScramError::Malformed(_)), "{bad}");
        }
    }

    #[test]
    fn names_are_escaped() {
        let (_, first) = Scram::begin::<Sha512>("a=b,c", &Secret("p".into()), "n".into());
        assert_eq!(first, b"n,,n=a=3Db=2Cc,r=n");
    }

    #[test]
    fn nonces_differ() {
        assert_ne!(nonce("").unwrap(), nonce("").unwrap());
    }
}
