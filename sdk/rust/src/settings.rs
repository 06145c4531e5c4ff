//! What the pipeline file says about a function, asked of the host once for each batch and name.

use std::cell::OnceCell;
use std::collections::BTreeMap;

use crate::Error;

/// Where settings come from.
#[derive(Debug)]
pub(crate) enum Source {
    /// The host, by the component's imports.
    #[cfg(target_arch = "wasm32")]
    Host,
    /// A test.
    Fixed { config: BTreeMap<String, String>, outputs: Vec<String> },
}

impl Source {
    fn config(&self, name: &str) -> Option<String> {
        match self {
            #[cfg(target_arch = "wasm32")]
            Source::Host => crate::bindings::fluxmill::function::settings::get(name),
            Source::Fixed { config, .. } => config.get(name).cloned(),
        }
    }

    fn outputs(&self) -> Vec<String> {
        match self {
            #[cfg(target_arch = "wasm32")]
            Source::Host => crate::bindings::fluxmill::function::settings::outputs(),
            Source::Fixed { outputs, .. } => outputs.clone(),
        }
    }
}

/// A list that only grows, so that what was read stays borrowed for the batch's life.
#[derive(Debug)]
struct Known {
    name: Box<str>,
    value: Option<Box<str>>,
    next: OnceCell<Box<Known>>,
}

#[derive(Debug)]
pub(crate) struct Settings {
    source: Source,
    outputs: OnceCell<Vec<String>>,
    config: OnceCell<Box<Known>>,
}

impl Settings {
    pub(crate) fn new(source: Source) -> Self {
        Self { source, outputs: OnceCell::new(), config: OnceCell::new() }
    }

    pub(crate) fn config(&self, name: &str) -> Option<&str> {
        let mut cell = &self.config;
        loop {
            let known = cell.get_or_init(|| {
                let value = self.source.config(name).map(String::into_boxed_str);
                Box::new(Known { name: name.into(), value, next: OnceCell::new() })
            });
            if *known.name == *name {
                return known.value.as_deref();
            }
            cell = &known.next;
        }
    }

    pub(crate) fn outputs(&self) -> &[String] {
        self.outputs.get_or_init(|| self.source.outputs())
    }

    /// The index of a named output.
    ///
    /// # Errors
    /// The pipeline has no such output; the reason names those it has.
    #[inline]
    pub(crate) fn output(&self, name: &str) -> Result<u8, Error> {
        let outputs = self.outputs();
        match outputs.iter().position(|output| output == name).map(u8::try_from) {
            Some(Ok(index)) => Ok(index),
            _ => Err(unknown_output(name, outputs)),
        }
    }
}

#[cold]
fn unknown_output(name: &str, outputs: &[String]) -> Error {
    let exist = match outputs {
        [] => "no named outputs".to_owned(),
        [one] => format!("only {one:?}"),
        many => many.iter().map(|output| format!("{output:?}")).collect::<Vec<_>>().join(", "),
    };
    Error::reject(format_args!("no output {name:?}: the pipeline has {exist}"))
}
