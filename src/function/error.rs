//! Why a function could not be loaded: one sentence each, with what to do instead.

use std::path::{Path, PathBuf};

/// Why a function, or the engine that runs functions, could not be loaded.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum LoadError {
    /// The file does not exist.
    #[error("{}: no such file; build the function first, or correct the path in `function.wasm`", .path.display())]
    NotFound {
        /// The file.
        path: PathBuf,
    },
    /// The file exists, but could not be read.
    #[error("{}: {source}; make the file readable for the user that runs fluxmill", .path.display())]
    Unreadable {
        /// The file.
        path: PathBuf,
        /// What the operating system said.
        source: std::io::Error,
    },
    /// The file is larger than any function should be.
    #[error(
        "{}: {bytes} bytes, but a function may have {allowed}; strip it (`wasm-tools strip`) or leave data files out",
        .path.display()
    )]
    TooLarge {
        /// The file.
        path: PathBuf,
        /// Its size.
        bytes: u64,
        /// The largest size that is loaded.
        allowed: u64,
    },
    /// The file is no WebAssembly component.
    #[error("{}: {found}", .path.display())]
    NotAComponent {
        /// The file.
        path: PathBuf,
        /// What it is instead.
        found: NotAComponent,
    },
    /// The component asks for something that is not granted.
    #[error("{} imports {name}, which is not granted: {remedy}", .path.display())]
    ForeignImport {
        /// The file.
        path: PathBuf,
        /// The import, as the component names it.
        name: String,
        /// What to do.
        remedy: String,
    },
    /// The component does not export the function contract.
    #[error(
        "{}: {found}; build it against wit/function.wit of this version (package fluxmill:function@0.1.0)",
        .path.display()
    )]
    WrongExport {
        /// The file.
        path: PathBuf,
        /// What is there instead.
        found: String,
    },
    /// The component is not the one that was pinned.
    #[error(
        "{}: has the digest sha256:{found}, but sha256:{expected} is pinned; \
         put the pinned file back, or pin the new digest if the change is wanted",
        .path.display()
    )]
    DigestMismatch {
        /// The file.
        path: PathBuf,
        /// The pinned digest, hex.
        expected: String,
        /// The file's digest, hex.
        found: String,
    },
    /// The component needs more memory to start than it may use.
    #[error(
        "{}: needs {needed} bytes of memory to start, but may use {allowed}; raise `limits.memory`",
        .path.display()
    )]
    Memory {
        /// The file.
        path: PathBuf,
        /// Bytes that it starts with.
        needed: u64,
        /// Bytes that it may use.
        allowed: u64,
    },
    /// The component could not be compiled: it is broken, or larger than the engine's bounds.
    #[error("{}: could not be compiled: {reason}; rebuild the function", .path.display())]
    Compile {
        /// The file.
        path: PathBuf,
        /// The compiler's words.
        reason: String,
    },
    /// The engine could not be set up.
    #[error("the function engine could not be set up: {reason}")]
    Engine {
        /// What is wrong and what to change.
        reason: String,
    },
}

/// What a file is that should be a component.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum NotAComponent {
    /// A core WebAssembly module.
    CoreModule,
    /// WebAssembly's text format.
    Text,
    /// A component or module of a version that is not known.
    UnknownVersion,
    /// A file that ends before its header does.
    Truncated,
    /// Something else.
    NotWasm,
}

impl std::fmt::Display for NotAComponent {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.write_str(match self {
            Self::CoreModule => {
                "a core WebAssembly module, but a function is a component; \
                 build for the target wasm32-wasip2, or wrap the module: `wasm-tools component new IN.wasm -o OUT.wasm`"
            }
            Self::Text => {
                "WebAssembly text, but a function is a binary component; convert it: `wasm-tools parse IN.wat -o OUT.wasm`"
            }
            Self::UnknownVersion => {
                "WebAssembly of a version that is not known here; rebuild the function with current component tools"
            }
            Self::Truncated => "the file is empty or cut off; build the function again",
            Self::NotWasm => "not WebAssembly; `function.wasm` must name a component file",
        })
    }
}

/// The eight bytes that a component begins with: magic, version 13, layer 1.
const COMPONENT_HEADER: [u8; 8] = [0, b'a', b's', b'm', 13, 0, 1, 0];
/// The eight bytes that a core module begins with.
const MODULE_HEADER: [u8; 8] = [0, b'a', b's', b'm', 1, 0, 0, 0];

/// Looks at a file's first bytes.
///
/// # Errors
/// What it is, if it is no component.
pub(super) fn check_header(bytes: &[u8], path: &Path) -> Result<(), LoadError> {
    let found = match bytes.first_chunk::<8>() {
        Some(&COMPONENT_HEADER) => return Ok(()),
        Some(&MODULE_HEADER) => NotAComponent::CoreModule,
        Some([0, b'a', b's', b'm', ..]) => NotAComponent::UnknownVersion,
        _ if is_text(bytes) => NotAComponent::Text,
        None => NotAComponent::Truncated,
        Some(_) => NotAComponent::NotWasm,
    };
    Err(LoadError::NotAComponent { path: path.to_owned(), found })
}

/// Whether the first word is a parenthesis or a comment, as in WebAssembly's text format.
fn is_text(bytes: &[u8]) -> bool {
    matches!(bytes.trim_ascii_start(), [b'(', ..] | [b';', b';', ..])
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_file_is_told_apart_by_its_first_bytes() {
        let found = |bytes: &[u8]| match check_header(bytes, Path::new("f.wasm")) {
            Ok(()) => None,
            Err(LoadError::NotAComponent { found, .. }) => Some(found),
            Err(other) => panic!("{other}"),
        };
        assert_eq!(found(b"\0asm\x0d\0\x01\0rest"), None);
        assert_eq!(found(b"\0asm\x01\0\0\0"), Some(NotAComponent::CoreModule));
        assert_eq!(found(b"\0asm\x0e\0\x01\0"), Some(NotAComponent::UnknownVersion));
        assert_eq!(found(b"  ;; text\n(component)"), Some(NotAComponent::Text));
        assert_eq!(found(b"(module)"), Some(NotAComponent::Text));
        assert_eq!(found(b""), Some(NotAComponent::Truncated));
        assert_eq!(found(b"\0asm"), Some(NotAComponent::Truncated));
        assert_eq!(found(b"\x7fELF\x02\x01\x01\0"), Some(NotAComponent::NotWasm));
    }
}
