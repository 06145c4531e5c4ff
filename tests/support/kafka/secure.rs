//! The listeners with TLS and SASL: their settings, the certificate, the users, and tokens for OAUTHBEARER.

use std::path::Path;
use std::process::Command;
use std::time::{Duration, SystemTime, UNIX_EPOCH};

use base64::Engine as _;
use base64::engine::general_purpose::URL_SAFE_NO_PAD;

use super::node::wait_to_end;
use crate::support::process::Process;

/// The password of both users, and of the key store.
pub(crate) const PASSWORD: &str = "not-a-secret";
/// A user who may do everything.
pub(crate) const ADMIN: &str = "admin";
/// A user who may do only what [`Kafka::allow`](super::Kafka::allow) allowed.
pub(crate) const GUEST: &str = "guest";

/// The mechanisms of both SASL listeners.
const MECHANISMS: &str = "PLAIN,SCRAM-SHA-256,SCRAM-SHA-512,OAUTHBEARER";

/// Settings of the broker in `dir`; `reauthenticate` is how long a client of the SASL listeners may go on before it
/// must say again who it is (KIP-368).
pub(super) fn settings(dir: &Path, reauthenticate: Option<Duration>) -> String {
    let store = dir.join("keys.p12");
    let mut text = format!(
        "authorizer.class.name=org.apache.kafka.metadata.authorizer.StandardAuthorizer\n\
         super.users=User:ANONYMOUS;User:{ADMIN}\n\
         sasl.enabled.mechanisms={MECHANISMS}\n\
         ssl.keystore.type=PKCS12\n\
         ssl.keystore.location={store}\n\
         ssl.keystore.password={PASSWORD}\n\
         ssl.key.password={PASSWORD}\n",
        store = store.display()
    );
    if let Some(time) = reauthenticate {
        text += &format!("connections.max.reauth.ms={}\n", time.as_millis());
    }
    let plain = format!("plain.PlainLoginModule required user_{ADMIN}=\"{PASSWORD}\" user_{GUEST}=\"{PASSWORD}\"");
    // Without a validator of its own a broker takes tokens that nobody signed (KIP-255).
    for (mechanism, module) in [
        ("plain", plain.as_str()),
        ("scram-sha-256", "scram.ScramLoginModule required"),
        ("scram-sha-512", "scram.ScramLoginModule required"),
        ("oauthbearer", "oauthbearer.OAuthBearerLoginModule required"),
    ] {
        for listener in ["sasl", "sasl_tls"] {
            text += &format!(
                "listener.name.{listener}.{mechanism}.sasl.jaas.config=org.apache.kafka.common.security.{module};\n"
            );
        }
    }
    text
}

/// What the tool that makes a broker's folder has to be told about the SCRAM users.
pub(super) fn scram_users() -> Vec<String> {
    let users = ["SCRAM-SHA-256", "SCRAM-SHA-512"]
        .into_iter()
        .flat_map(|mechanism| [ADMIN, GUEST].map(|user| format!("{mechanism}=[name={user},password={PASSWORD}]")));
    users.flat_map(|user| ["--add-scram".to_owned(), user]).collect()
}

/// A self-signed certificate for `localhost`, by the tool that comes with Java: the store and the PEM file.
pub(super) fn make_certificate(dir: &Path) -> anyhow::Result<()> {
    let keytool = |arguments: &[&str]| {
        let mut keytool = Command::new("keytool");
        keytool.args(arguments).args(["-alias", "kafka", "-storetype", "PKCS12", "-storepass", PASSWORD]);
        keytool.arg("-keystore").arg(dir.join("keys.p12"));
        keytool
    };
    let run = |keytool: &mut Command| wait_to_end(Process::start("keytool", keytool)?, "keytool");
    let name = ["-dname", "CN=localhost", "-ext", "san=dns:localhost,ip:127.0.0.1", "-ext", "bc:c=ca:true"];
    let mut make = keytool(&["-genkeypair", "-keyalg", "EC", "-groupname", "secp256r1", "-validity", "2"]);
    run(make.args(name))?;
    let mut export = keytool(&["-exportcert", "-rfc"]);
    run(export.arg("-file").arg(dir.join("certificate.pem")))
}

/// A token for `user` that is good for `lifetime` from now: a JSON Web Signature with nothing behind its last dot
/// (RFC 7515, appendix A.5), which the broker of the tests believes.
pub(crate) fn token(user: &str, lifetime: Duration) -> String {
    let now = SystemTime::now().duration_since(UNIX_EPOCH).unwrap_or_default();
    let claims = serde_json::json!({
        "sub": user,
        "iat": now.as_secs_f64(),
        "exp": (now + lifetime).as_secs_f64(),
    });
    let part = |text: &str| URL_SAFE_NO_PAD.encode(text);
    format!("{}.{}.", part("{\"alg\":\"none\"}"), part(&claims.to_string()))
}
