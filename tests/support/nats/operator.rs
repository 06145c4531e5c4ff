//! A server in operator mode: the JWTs of an operator, its accounts and their users, signed here, and credentials files
//! as `nsc` writes them.

use std::time::{SystemTime, UNIX_EPOCH};

use anyhow::Context as _;
use base64::Engine as _;
use base64::engine::general_purpose::URL_SAFE_NO_PAD;
use nkeys::KeyPair;
use serde_json::{Value, json};

/// An operator, with an account that may use JetStream, one that may not, and the system's own.
pub(crate) struct Operator {
    key: KeyPair,
    account: KeyPair,
    outside: KeyPair,
    system: KeyPair,
}

impl Operator {
    /// With new keys.
    ///
    /// # Errors
    /// When a key cannot be made.
    pub(crate) fn new() -> anyhow::Result<Self> {
        let [account, outside, system] = [(); 3].map(|()| KeyPair::new_account());
        Ok(Self { key: KeyPair::new_operator(), account, outside, system })
    }

    /// What a server's file says that trusts this operator: its accounts are in memory.
    ///
    /// # Errors
    /// When something cannot be signed.
    pub(crate) fn settings(&self) -> anyhow::Result<String> {
        let system = self.system.public_key();
        let claims = json!({ "type": "operator", "version": 2, "system_account": system });
        let operator = jwt(&self.key, &self.key.public_key(), claims, None)?;
        let mut preload = String::new();
        for (account, storage) in [(&self.account, -1), (&self.outside, 0), (&self.system, 0)] {
            let key = account.public_key();
            preload += &format!("  {key}: \"{}\"\n", jwt(&self.key, &key, limits(storage), None)?);
        }
        Ok(format!(
            "operator: \"{operator}\"\nsystem_account: {system}\nresolver: MEMORY\nresolver_preload: {{\n{preload}}}"
        ))
    }

    /// Credentials of a new user of the account that may use JetStream. They expire after so many seconds, which may be
    /// over already.
    ///
    /// # Errors
    /// When they cannot be signed.
    pub(crate) fn user(&self, expires: Option<i64>) -> anyhow::Result<String> {
        credentials(&self.account, expires)
    }

    /// Credentials of a new user of the account that may not.
    ///
    /// # Errors
    /// When they cannot be signed.
    pub(crate) fn outsider(&self) -> anyhow::Result<String> {
        credentials(&self.outside, None)
    }
}

/// What an account may: everything, and as much of JetStream as it wants (-1) or none (0).
fn limits(storage: i64) -> Value {
    json!({
        "type": "account",
        "version": 2,
        "limits": {
            "subs": -1, "data": -1, "payload": -1, "imports": -1, "exports": -1, "wildcards": true, "conn": -1,
            "leaf": -1, "mem_storage": storage, "disk_storage": storage, "streams": storage, "consumer": storage,
        },
    })
}

/// A credentials file of a new user of an account.
fn credentials(account: &KeyPair, expires: Option<i64>) -> anyhow::Result<String> {
    let user = KeyPair::new_user();
    let claims = json!({ "type": "user", "version": 2, "subs": -1, "data": -1, "payload": -1 });
    let (jwt, seed) = (jwt(account, &user.public_key(), claims, expires)?, user.seed()?);
    Ok(format!(
        "-----BEGIN NATS USER JWT-----\n{jwt}\n------END NATS USER JWT------\n\n\
         ************************* IMPORTANT *************************\n\
         NKEY Seed printed below can be used to sign and prove identity.\n\
         NKEYs are sensitive and should be treated as secrets.\n\n\
         -----BEGIN USER NKEY SEED-----\n{seed}\n------END USER NKEY SEED------\n\n\
         *************************************************************\n"
    ))
}

/// Says of `subject` what `claims` are, signed by `issuer`.
fn jwt(issuer: &KeyPair, subject: &str, claims: Value, expires: Option<i64>) -> anyhow::Result<String> {
    let now = i64::try_from(SystemTime::now().duration_since(UNIX_EPOCH)?.as_secs())?;
    let mut body = json!({
        "jti": subject, "iat": now, "iss": issuer.public_key(), "name": "tests", "sub": subject, "nats": claims,
    });
    if let Some(expires) = expires {
        body["exp"] = json!(now + expires);
    }
    let encode = |part: &[u8]| URL_SAFE_NO_PAD.encode(part);
    let head = encode(json!({ "typ": "JWT", "alg": "ed25519-nkey" }).to_string().as_bytes());
    let text = format!("{head}.{}", encode(body.to_string().as_bytes()));
    let signature = issuer.sign(text.as_bytes()).ok().context("a key that cannot sign")?;
    Ok(format!("{text}.{}", encode(&signature)))
}
