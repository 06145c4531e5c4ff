//! What must not be shown: finds secrets that are written in the file, and masks them in what messages quote.

use super::error::Span;
use super::tree::{Body, Node};
use crate::spec::is_secret;

/// The text with every secret replaced by as many stars as it has bytes, so that places stay true.
pub(crate) fn mask(text: &str, tree: Option<&Node>) -> String {
    let mut spans = Vec::new();
    match tree {
        Some(tree) => collect(tree, false, &mut spans),
        // Not YAML: everything after what looks like a secret's key, to the end of its line.
        None => lines(text, &mut spans),
    }
    let mut bytes = text.as_bytes().to_vec();
    for span in spans {
        for byte in &mut bytes[span] {
            if !matches!(byte, b'\n' | b'\r') {
                *byte = b'*';
            }
        }
    }
    String::from_utf8_lossy(&bytes).into_owned()
}

fn collect(node: &Node, secret: bool, spans: &mut Vec<Span>) {
    match &node.body {
        Body::Scalar { text, .. } => {
            let only_names_a_variable = text.starts_with("${") && !text.contains(":-") && text.ends_with('}');
            // `nats://user:password@host` is refused, but shown where it stands.
            let has_a_password = text.contains("://") && text.contains('@');
            if (secret && !only_names_a_variable) || has_a_password {
                spans.push(node.span.clone());
            }
        }
        Body::List(items) => items.iter().for_each(|item| collect(item, secret, spans)),
        Body::Map(entries) => {
            for entry in entries {
                let names_a_file = entry.key == "file";
                collect(&entry.node, is_secret(&entry.key) || (secret && !names_a_file), spans);
            }
        }
    }
}

fn lines(text: &str, spans: &mut Vec<Span>) {
    let mut start = 0;
    for line in text.split_inclusive('\n') {
        let mut from = 0;
        while let Some(colon) = line[from..].find(':') {
            let key = line[from..from + colon].rsplit(['{', ',', '"', '\'', ' ']).find(|part| !part.is_empty());
            from += colon + 1;
            if key.is_some_and(is_secret) {
                spans.push(start + from..start + line.len());
                break;
            }
        }
        start += line.len();
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::config::tree;

    fn masked(text: &str) -> String {
        let mut mistakes = Vec::new();
        let tree = tree::parse(text, &mut mistakes);
        mask(text, tree.as_deref())
    }

    #[test]
    fn secrets_are_stars() {
        assert_eq!(masked("a: b\npassword: hunter2\n"), "a: b\npassword: *******\n");
        assert_eq!(masked("s: { password: \"päss\", x: 1 }\n"), "s: { password: *******, x: 1 }\n");
        assert_eq!(masked("password: ${P}\n"), "password: ${P}\n");
        assert_eq!(masked("password: ${P:-abc}\n"), "password: *********\n");
        assert_eq!(masked("password: { file: p.txt }\n"), "password: { file: p.txt }\n");
        assert_eq!(masked("ssl.key.password: abc\n"), "ssl.key.password: ***\n");
        assert_eq!(masked("servers: [nats://a:b@c]\n"), "servers: [************]\n");
    }

    #[test]
    fn secrets_are_stars_in_what_is_not_yaml() {
        assert_eq!(masked("s: { password: hunter2, x: [ }\n"), "s: { password:****************\n");
        assert_eq!(masked("\"password\": hunter2\n\tx\n"), "\"password\":********\n\tx\n");
    }

    #[test]
    fn a_block_text_is_masked_whole() {
        let text = "private: |\n  line one\n  line two\nname: x\n";
        let masked = masked(text);
        assert_eq!(masked.len(), text.len());
        assert!(!masked.contains("line") && masked.contains("name: x"), "{masked}");
    }
}
