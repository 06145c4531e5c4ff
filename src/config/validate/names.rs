//! Which names can be used for what.

use crate::config::error::Kind;

/// Why a name cannot be used, and what can.
pub(super) struct Refusal {
    pub(super) kind: Kind,
    pub(super) message: String,
    pub(super) help: String,
}

type Checked = Result<(), Refusal>;

/// Characters of a topic's name at most (org.apache.kafka.common.internals.Topic).
const TOPIC_MAX: usize = 249;
/// Characters of our own names at most: two of them and `.dead` make a topic.
const NAME_MAX: usize = 100;

fn refuse<T>(kind: Kind, message: String, help: impl Into<String>) -> Result<T, Refusal> {
    Err(Refusal { kind, message, help: help.into() })
}

/// A chain's name.
pub(super) fn chain(name: &str) -> Checked {
    ours("the chain", name, true)
}

/// A pipeline's name.
pub(super) fn pipeline(name: &str) -> Checked {
    ours("a pipeline", name, false)
}

/// A connection's name.
pub(super) fn connection(name: &str) -> Checked {
    ours("a connection", name, false)
}

/// An output's name.
pub(super) fn output(name: &str) -> Checked {
    ours("an output", name, false)
}

fn ours(of: &str, name: &str, dots: bool) -> Checked {
    let allowed = |c: char| c.is_ascii_alphanumeric() || c == '-' || c == '_' || (dots && c == '.');
    let letters = if dots { "letters, digits, `-`, `_` and `.`" } else { "letters, digits, `-` and `_`" };
    let shown = name.escape_debug();
    if name.chars().count() > NAME_MAX {
        let message = format!("`{shown}` is longer than {NAME_MAX} characters");
        return refuse(Kind::BadName, message, format!("write a name of at most {NAME_MAX} characters"));
    }
    if !name.starts_with(|c: char| c.is_ascii_alphanumeric()) || !name.chars().all(allowed) {
        let help = format!("names have {letters}, and begin with a letter or digit{}", instead(name, allowed));
        return refuse(Kind::BadName, format!("`{shown}` cannot be the name of {of}"), help);
    }
    Ok(())
}

/// The same name with what is not allowed replaced.
fn instead(name: &str, allowed: impl Fn(char) -> bool) -> String {
    let replaced: String = name.chars().map(|c| if allowed(c) { c } else { '-' }).collect();
    let replaced = replaced.trim_matches(|c: char| !c.is_ascii_alphanumeric());
    if replaced.is_empty() { String::new() } else { format!(": write `{replaced}`") }
}

/// A topic, by Kafka's rules.
pub(super) fn topic(name: &str) -> Checked {
    kafka(name, Kind::BadTopic, "a topic")
}

/// A topic that events may be written to.
pub(super) fn writable(name: &str) -> Checked {
    if matches!(name, "__consumer_offsets" | "__transaction_state" | "__share_group_state" | "__cluster_metadata") {
        let message = format!("`{name}` belongs to Kafka itself");
        return refuse(Kind::BadTopic, message, "write to a topic of your own");
    }
    Ok(())
}

/// A static member's name: the broker checks it like a topic.
pub(super) fn instance(name: &str) -> Checked {
    kafka(name, Kind::BadName, "a group member")
}

fn kafka(name: &str, kind: Kind, of: &str) -> Checked {
    let allowed = |c: char| c.is_ascii_alphanumeric() || matches!(c, '.' | '_' | '-');
    if name.len() > TOPIC_MAX {
        let message = format!("`{}` is longer than {TOPIC_MAX} characters", name.escape_debug());
        return refuse(kind, message, format!("Kafka takes names of at most {TOPIC_MAX} characters"));
    }
    if name.is_empty() || name == "." || name == ".." || !name.chars().all(allowed) {
        let help = format!("Kafka takes letters, digits, `.`, `_` and `-`{}", instead(name, allowed));
        return refuse(kind, format!("`{}` cannot be the name of {of}", name.escape_debug()), help);
    }
    Ok(())
}

/// Bytes of a name or a subject of NATS at most.
const NATS_MAX: usize = 255;

/// A stream, or a durable consumer.
pub(super) fn nats(of: &str, name: &str) -> Checked {
    let allowed = |c: char| c.is_ascii_graphic() && !matches!(c, '.' | '*' | '>' | '/' | '\\');
    if name.is_empty() || name.len() > NATS_MAX || !name.chars().all(allowed) {
        let help = format!("NATS takes letters, digits, `-` and `_`, at most {NATS_MAX}{}", instead(name, allowed));
        return refuse(Kind::BadStream, format!("`{}` cannot be the name of {of}", name.escape_debug()), help);
    }
    Ok(())
}

/// What a subject may have in it.
#[derive(Clone, Copy, PartialEq, Eq)]
pub(super) enum Subject {
    /// Wildcards: it is read, or stored.
    Filter,
    /// `{key}`: it is written to.
    Template,
}

/// A subject.
pub(super) fn subject(subject: &str, is: Subject) -> Checked {
    let shown = subject.escape_debug();
    let bad = |why: &str, help: &str| refuse(Kind::BadSubject, format!("`{shown}` {why}"), help);
    if subject.is_empty() || subject.len() > NATS_MAX {
        return bad(&format!("has not 1 to {NATS_MAX} bytes"), "write a subject, such as `orders.new`");
    }
    if subject.split('.').any(str::is_empty) {
        return bad("has a token without a character", "write something between the dots, and nothing outside of them");
    }
    if !subject.chars().all(|c| c.is_ascii_graphic()) {
        return bad(
            "has spaces or other characters that no subject has",
            "write letters, digits, `-`, `_`, and dots in between",
        );
    }
    let first = subject.split('.').next().unwrap_or_default();
    if first.starts_with('$') || first == "_INBOX" {
        return bad("belongs to NATS itself", "write a subject of your own");
    }
    let last = subject.split('.').count() - 1;
    for (at, token) in subject.split('.').enumerate() {
        let has_wildcard = token.contains(['*', '>']);
        if is == Subject::Filter && has_wildcard && token != "*" && !(token == ">" && at == last) {
            return bad(
                "has a wildcard in the wrong place",
                "write `*` for one whole token, and `>` for all that follow, at the end",
            );
        }
        if is == Subject::Template && has_wildcard {
            return bad(
                "has a wildcard, but an event goes to one subject",
                "write a subject, with `{key}` where the event's key belongs",
            );
        }
        let rest = if is == Subject::Template { token.replace("{key}", "") } else { token.to_owned() };
        if rest.contains(['{', '}']) {
            let help = match is {
                Subject::Template => "`{key}` is all that can be filled in",
                Subject::Filter => "write `*` where any token may stand",
            };
            return bad("has braces", help);
        }
    }
    Ok(())
}

/// A header that Fluxmill adds.
pub(super) fn header(name: &str) -> Checked {
    let reserved = ["nats-", "fluxmill-"].iter().any(|begin| name.to_lowercase().starts_with(begin));
    if name.is_empty() || reserved || !name.chars().all(|c| c.is_ascii_graphic() && c != ':') {
        let message = format!("`{}` cannot be the name of a header here", name.escape_debug());
        return refuse(Kind::BadName, message, "write a name of its own, such as `subject`");
    }
    Ok(())
}

/// The address of a NATS server, with its scheme; and whether that asks for TLS.
pub(super) fn server(address: &str) -> Result<(String, bool), Refusal> {
    let (scheme, rest) = address.split_once("://").unwrap_or(("nats", address));
    if let Some((_, host)) = rest.rsplit_once('@') {
        let message = "a server's address has no user and password".to_owned();
        let help = format!("write `{scheme}://{}`; add `user:` and `password:`, or `token:`", host.escape_debug());
        return refuse(Kind::BadServer, message, help);
    }
    if !matches!(scheme, "nats" | "tls") {
        let message = format!("`{}` begins with `{}://`", address.escape_debug(), scheme.escape_debug());
        return refuse(
            Kind::BadServer,
            message,
            format!("write `nats://{}`, or `tls://` for TLS", rest.escape_debug()),
        );
    }
    broker(rest).map_err(|refusal| Refusal {
        kind: Kind::BadServer,
        message: refusal.message,
        help: refusal.help.replace("9092", "4222"),
    })?;
    Ok((format!("{scheme}://{rest}"), scheme == "tls"))
}

/// A consumer group.
pub(super) fn group(name: &str) -> Checked {
    if name.trim().is_empty() || name.len() > 255 || name.chars().any(char::is_control) {
        let message = format!("`{}` cannot be the name of a consumer group", name.escape_debug());
        return refuse(Kind::BadName, message, "write 1 to 255 printable characters, such as `orders.payment`");
    }
    Ok(())
}

/// Whether this can be a bearer token: visible ASCII, and so nothing that SASL or HTTP would take for an end.
pub(super) fn token(text: &str) -> bool {
    text.bytes().all(|byte| byte.is_ascii_graphic())
}

/// A digest; gives its hexadecimal digits in lower case.
pub(super) fn digest(text: &str) -> Result<String, Refusal> {
    let digits = text.strip_prefix("sha256:");
    match digits.filter(|digits| digits.len() == 64 && digits.bytes().all(|digit| digit.is_ascii_hexdigit())) {
        Some(digits) => Ok(digits.to_lowercase()),
        None => {
            let help = "write `sha256:` and 64 hexadecimal digits, as `sha256sum` prints them";
            refuse(Kind::BadDigest, format!("`{}` is no digest", text.escape_debug()), help)
        }
    }
}

/// A broker's address.
pub(super) fn broker(address: &str) -> Checked {
    if let Some((_, host)) = address.rsplit_once('@') {
        // What stands before is a password, more likely than not; it is not shown.
        let message = "a broker's address has no user and password".to_owned();
        let help = format!("write `{}`; user and password go to `sasl:`", host.escape_debug());
        return refuse(Kind::BadBroker, message, help);
    }
    let shown = address.escape_debug();
    if let Some((scheme, rest)) = address.split_once("://") {
        let help = format!("write `{rest}`; for TLS add `tls: {{}}`, for a password `sasl:`");
        return refuse(Kind::BadBroker, format!("`{shown}` begins with `{scheme}://`"), help);
    }
    let Some((host, port)) = address.rsplit_once(':').filter(|(host, _)| !host.is_empty()) else {
        let host = address.trim_matches(':');
        let is_port = host.bytes().all(|byte| byte.is_ascii_digit());
        let host = if is_port { "localhost" } else { host };
        return refuse(Kind::BadBroker, format!("`{shown}` is no `host:port`"), format!("write `{host}:9092`"));
    };
    let bracketed = host.starts_with('[') && host.ends_with(']');
    if host.contains(':') && !bracketed {
        let help = "write an IPv6 address in brackets: `[::1]:9092`";
        return refuse(Kind::BadBroker, format!("`{shown}` is no `host:port`"), help);
    }
    if host.chars().any(|c| c.is_whitespace() || c == '/' || c.is_control()) {
        return refuse(Kind::BadBroker, format!("`{shown}` is no `host:port`"), "write `localhost:9092`");
    }
    match port.parse::<u16>() {
        Ok(port) if port > 0 => Ok(()),
        _ => {
            let message = format!("`{}` is no port", port.escape_debug());
            refuse(Kind::BadBroker, message, format!("write a number from 1 to 65535: `{host}:9092`"))
        }
    }
}
