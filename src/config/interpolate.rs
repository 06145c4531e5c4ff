//! `${VAR}`, `${VAR:-default}` and the escape `$${`. Pure. What a variable holds is text for good: it is never looked
//! at again, neither for variables nor as YAML.

use std::ops::Range;

/// Where a variable's value comes from.
pub(crate) type Environment<'a> = &'a dyn Fn(&str) -> Option<String>;

/// Why `${...}` has no value.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) enum Problem {
    /// No closing brace.
    Unclosed,
    /// Neither `${VAR}` nor `${VAR:-default}`.
    Form(String),
    /// Not set, and no default.
    Missing(String),
}

/// A problem, and the bytes of the text that it is about.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) struct Found {
    /// The bytes from `$` to `}`.
    pub(crate) range: Range<usize>,
    /// What is wrong there.
    pub(crate) problem: Problem,
}

/// Replaces every `${...}` by its value.
///
/// # Errors
/// Every `${...}` that has no value.
pub(crate) fn interpolate(text: &str, environment: Environment<'_>) -> Result<String, Vec<Found>> {
    let mut out = String::with_capacity(text.len());
    let mut found = Vec::new();
    let mut at = 0;
    while let Some(next) = text[at..].find('$') {
        let dollar = at + next;
        out.push_str(&text[at..dollar]);
        let rest = &text[dollar..];
        if rest.starts_with("$${") {
            out.push_str("${");
            at = dollar + 3;
        } else if let Some(body) = rest.strip_prefix("${") {
            let Some(length) = body.find('}') else {
                found.push(Found { range: dollar..text.len(), problem: Problem::Unclosed });
                at = text.len();
                continue;
            };
            at = dollar + length + 3;
            match value(&body[..length], environment) {
                Ok(value) => out.push_str(&value),
                Err(problem) => found.push(Found { range: dollar..at, problem }),
            }
        } else {
            out.push('$');
            at = dollar + 1;
        }
    }
    out.push_str(&text[at..]);
    if found.is_empty() { Ok(out) } else { Err(found) }
}

fn value(body: &str, environment: Environment<'_>) -> Result<String, Problem> {
    let (name, default) = match body.split_once(":-") {
        Some((name, default)) => (name, Some(default)),
        None => (body, None),
    };
    if !is_variable(name) || default.is_some_and(|text| text.contains("${")) {
        return Err(Problem::Form(body.to_owned()));
    }
    match (environment(name), default) {
        (Some(value), None) => Ok(value),
        (Some(value), Some(_)) if !value.is_empty() => Ok(value),
        (_, Some(default)) => Ok(default.to_owned()),
        (None, None) => Err(Problem::Missing(name.to_owned())),
    }
}

fn is_variable(name: &str) -> bool {
    let mut bytes = name.bytes();
    bytes.next().is_some_and(|first| first.is_ascii_alphabetic() || first == b'_')
        && bytes.all(|byte| byte.is_ascii_alphanumeric() || byte == b'_')
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    fn environment(name: &str) -> Option<String> {
        match name {
            "HOST" => Some("example".to_owned()),
            "EMPTY" => Some(String::new()),
            "TRICKY" => Some("${HOST} $${HOST} ]: {".to_owned()),
            _ => None,
        }
    }

    #[test]
    fn values_defaults_and_escapes() {
        let read = |text: &str| interpolate(text, &environment).expect(text);
        assert_eq!(read("a ${HOST} b"), "a example b");
        assert_eq!(read("${HOST}${HOST}"), "exampleexample");
        assert_eq!(read("${NONE:-localhost:9092}"), "localhost:9092");
        assert_eq!(read("${EMPTY:-filled}"), "filled");
        assert_eq!(read("${EMPTY}"), "");
        assert_eq!(read("${NONE:-}"), "");
        assert_eq!(read("$${HOST} costs $5"), "${HOST} costs $5");
        assert_eq!(read("${TRICKY}"), "${HOST} $${HOST} ]: {");
    }

    #[test]
    fn every_problem_is_found() {
        let found = interpolate("${NONE} ${HOST} ${a-b} ${x:?y} ${", &environment).expect_err("four problems");
        let problems: Vec<_> = found.iter().map(|found| (found.range.clone(), found.problem.clone())).collect();
        assert_eq!(
            problems,
            [
                (0..7, Problem::Missing("NONE".to_owned())),
                (16..22, Problem::Form("a-b".to_owned())),
                (23..30, Problem::Form("x:?y".to_owned())),
                (31..33, Problem::Unclosed),
            ]
        );
        assert!(interpolate("${A:-${B}}", &environment).is_err());
    }

    proptest! {
        #[test]
        fn escaped_text_comes_back(text in "[a${}:\\- é]{0,30}") {
            let escaped = text.replace("${", "$${");
            prop_assert_eq!(interpolate(&escaped, &environment), Ok(text));
        }

        #[test]
        fn a_value_is_never_looked_at_again(value in "\\PC{0,30}", before in "[a-z ]{0,5}", after in "[a-z ]{0,5}") {
            let environment = |name: &str| (name == "X").then(|| value.clone());
            let read = interpolate(&format!("{before}${{X}}{after}"), &environment);
            prop_assert_eq!(read, Ok(format!("{before}{value}{after}")));
        }

        #[test]
        fn ranges_are_inside_the_text(text in "[a${}:\\-é]{0,30}") {
            if let Err(found) = interpolate(&text, &|_| None) {
                prop_assert!(!found.is_empty());
                for one in found {
                    let begins = text[one.range].starts_with("${");
                    prop_assert!(begins);
                }
            }
        }
    }
}
