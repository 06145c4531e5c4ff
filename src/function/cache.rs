//! Compiled code on disk, so that a function is compiled once for each version of Fluxmill and kind of machine.
//!
//! Compiled code is code: whoever can write it runs in this process. So the folder must belong to this user alone
//! (mode 0700), each file must belong to this user, and its content must have the digest that its header says. The
//! digest finds damage, not malice; malice is kept out by the owner and the mode. What does not fit is compiled again.

use std::fs::{File, Metadata, OpenOptions};
use std::hash::{Hash, Hasher};
use std::io::{ErrorKind, Read, Write};
use std::path::{Path, PathBuf};

use sha2::{Digest, Sha256};
use wasmtime::component::Component;

/// How a file begins; the digest of the rest follows.
const MAGIC: &[u8; 16] = b"fluxmill code 1\n";
/// Magic and SHA-256.
const HEADER: usize = 16 + 32;
/// Files that the folder may hold; the oldest go first.
const FILES_MAX: usize = 256;
/// The largest file that is read or written, in bytes.
const FILE_BYTES_MAX: u64 = 1 << 30;
/// How the files of the cache are called.
const SUFFIX: &str = "fluxcode";

/// A folder of compiled code.
#[derive(Debug)]
pub(super) struct Cache {
    folder: PathBuf,
    /// Stands for wasmtime's version, the target and all settings that change code.
    engine: String,
}

/// Lower-case hex.
pub(super) fn hex(bytes: &[u8]) -> String {
    bytes.iter().map(|byte| format!("{byte:02x}")).collect()
}

impl Cache {
    /// Opens the folder, and makes it if it is missing. `None` when it must not be used; the log says why.
    pub(super) fn open(folder: PathBuf, engine: &wasmtime::Engine) -> Option<Self> {
        match prepare(&folder) {
            Ok(()) => Some(Self { folder, engine: fingerprint(engine) }),
            Err(reason) => {
                tracing::warn!(folder = %folder.display(), "functions are compiled at each start: {reason}");
                None
            }
        }
    }

    /// The compiled component, if it is there and whole.
    pub(super) fn get(&self, engine: &wasmtime::Engine, digest: &str) -> Option<Component> {
        let path = self.path(digest);
        let damaged = |reason: &str| {
            tracing::warn!(file = %path.display(), "compiled code is not used and will be made again: {reason}");
            None
        };
        let code = match read(&path) {
            Ok(Some(code)) => code,
            Ok(None) => return None,
            Err(reason) => return damaged(&reason),
        };
        // SAFETY: the bytes must come unchanged from `Component::serialize`. They were read from a file that this
        // user owns and nobody else can write, in a folder that nobody else can enter, and they have the digest that
        // was written with them; only `put` writes such files, from `Component::serialize`. Another version of
        // wasmtime or other settings have another file name, and `deserialize` refuses them as well.
        match unsafe { Component::deserialize(engine, &code[HEADER..]) } {
            Ok(component) => Some(component),
            Err(error) => damaged(&format!("{error:#}")),
        }
    }

    /// Keeps a compiled component. A failure is said in the log, and otherwise has no effect.
    pub(super) fn put(&self, digest: &str, component: &Component) {
        let path = self.path(digest);
        let kept =
            component.serialize().map_err(|error| format!("{error:#}")).and_then(|code| self.write(&path, &code));
        if let Err(reason) = kept {
            tracing::warn!(file = %path.display(), "compiled code is not kept: {reason}");
        }
        self.prune();
    }

    fn path(&self, digest: &str) -> PathBuf {
        self.folder.join(format!("{digest}-{}.{SUFFIX}", self.engine))
    }

    /// Writes beside the file and renames: another process sees the old file or the new one, whole.
    fn write(&self, path: &Path, code: &[u8]) -> Result<(), String> {
        if code.len() as u64 + HEADER as u64 > FILE_BYTES_MAX {
            return Err(format!("{} bytes are too many", code.len()));
        }
        let unique = format!("{}-{:016x}.{SUFFIX}", std::process::id(), fastrand::u64(..));
        let temporary = self.folder.join(unique);
        let written = create(&temporary)
            .and_then(|mut file| {
                file.write_all(MAGIC)?;
                file.write_all(&Sha256::digest(code))?;
                file.write_all(code)
            })
            .and_then(|()| std::fs::rename(&temporary, path));
        written.map_err(|error| {
            let _ = std::fs::remove_file(&temporary);
            error.to_string()
        })
    }

    /// Removes the oldest files beyond the bound, among them what a killed process left.
    fn prune(&self) {
        let Ok(entries) = std::fs::read_dir(&self.folder) else { return };
        let mut files: Vec<_> = entries
            .flatten()
            .map(|entry| entry.path())
            .filter(|path| path.extension().is_some_and(|extension| extension == SUFFIX))
            .filter_map(|path| Some((path.metadata().and_then(|metadata| metadata.modified()).ok()?, path)))
            .collect();
        files.sort();
        let surplus = files.len().saturating_sub(FILES_MAX);
        for (_, path) in files.drain(..surplus) {
            let _ = std::fs::remove_file(path);
        }
    }
}

/// The content of a file that may be trusted; `None` when there is no file.
fn read(path: &Path) -> Result<Option<Vec<u8>>, String> {
    let mut file = match File::open(path) {
        Ok(file) => file,
        Err(error) if error.kind() == ErrorKind::NotFound => return Ok(None),
        Err(error) => return Err(error.to_string()),
    };
    // Asked of the open file, not of its name: what is checked is what is read.
    let metadata = file.metadata().map_err(|error| error.to_string())?;
    if !metadata.is_file() {
        return Err("it is no file".to_owned());
    }
    check_owner(&metadata)?;
    if metadata.len() > FILE_BYTES_MAX {
        return Err(format!("{} bytes are too many", metadata.len()));
    }
    let mut content = Vec::with_capacity(metadata.len() as usize);
    (&mut file).take(FILE_BYTES_MAX).read_to_end(&mut content).map_err(|error| error.to_string())?;
    let Some((header, code)) = content.split_at_checked(HEADER) else {
        return Err("it is cut off".to_owned());
    };
    if !header.starts_with(MAGIC) {
        return Err("it is no file of compiled code".to_owned());
    }
    if header[MAGIC.len()..] != Sha256::digest(code)[..] {
        return Err("its content does not have the digest that it says".to_owned());
    }
    Ok(Some(content))
}

/// Makes the folder if it is missing, and checks that it is this user's alone.
fn prepare(folder: &Path) -> Result<(), String> {
    make_folder(folder).map_err(|error| format!("the cache folder cannot be made: {error}"))?;
    let metadata = folder.metadata().map_err(|error| format!("the cache folder cannot be read: {error}"))?;
    if !metadata.is_dir() {
        return Err("the cache folder is no folder".to_owned());
    }
    check_owner(&metadata).map_err(|reason| {
        format!("the cache folder must be yours alone, but {reason}; set FLUXMILL_CACHE_DIR to another folder")
    })
}

#[cfg(unix)]
fn make_folder(folder: &Path) -> std::io::Result<()> {
    use std::os::unix::fs::DirBuilderExt;
    std::fs::DirBuilder::new().recursive(true).mode(0o700).create(folder)
}

#[cfg(unix)]
fn create(path: &Path) -> std::io::Result<File> {
    use std::os::unix::fs::OpenOptionsExt;
    OpenOptions::new().write(true).create_new(true).mode(0o600).open(path)
}

#[cfg(unix)]
fn check_owner(metadata: &Metadata) -> Result<(), String> {
    use std::os::unix::fs::MetadataExt;
    // SAFETY: geteuid has no preconditions and cannot fail.
    let user = unsafe { libc::geteuid() };
    if metadata.uid() != user {
        return Err(format!("it belongs to user {}", metadata.uid()));
    }
    match metadata.mode() & 0o022 {
        0 => Ok(()),
        _ => Err(format!("others can write to it (mode {:o})", metadata.mode() & 0o777)),
    }
}

#[cfg(not(unix))]
fn make_folder(_: &Path) -> std::io::Result<()> {
    Err(std::io::Error::new(ErrorKind::Unsupported, "owners of files are only checked on Unix"))
}

#[cfg(not(unix))]
fn create(path: &Path) -> std::io::Result<File> {
    OpenOptions::new().write(true).create_new(true).open(path)
}

#[cfg(not(unix))]
fn check_owner(_: &Metadata) -> Result<(), String> {
    Err("owners of files are only checked on Unix".to_owned())
}

/// Feeds whatever is hashed to SHA-256: the standard hasher may differ from one release of Rust to the next.
struct Sha256Hasher(Sha256);

impl Hasher for Sha256Hasher {
    fn write(&mut self, bytes: &[u8]) {
        self.0.update(bytes);
    }

    fn finish(&self) -> u64 {
        let digest = self.0.clone().finalize();
        u64::from_le_bytes(*digest.first_chunk().expect("a digest has 32 bytes"))
    }
}

/// Wasmtime's version, the target with its CPU features, and the settings that change code.
fn fingerprint(engine: &wasmtime::Engine) -> String {
    let mut hasher = Sha256Hasher(Sha256::new());
    engine.precompile_compatibility_hash().hash(&mut hasher);
    hex(&hasher.0.finalize()[..8])
}

#[cfg(test)]
mod tests {
    use super::*;

    fn cache(folder: &Path) -> Cache {
        Cache { folder: folder.to_owned(), engine: "0".to_owned() }
    }

    #[test]
    fn what_was_written_is_read_and_damage_is_found() {
        let folder = tempfile::tempdir().unwrap();
        let cache = cache(folder.path());
        let path = cache.path("d");
        assert_eq!(read(&path), Ok(None));
        cache.write(&path, b"code").unwrap();
        assert_eq!(read(&path).unwrap().unwrap()[HEADER..], *b"code");
        assert_eq!(std::fs::read_dir(folder.path()).unwrap().count(), 1, "no temporary file stays");

        let whole = std::fs::read(&path).unwrap();
        for length in 0..whole.len() {
            std::fs::write(&path, &whole[..length]).unwrap();
            read(&path).unwrap_err();
        }
        for at in 0..whole.len() {
            let mut damaged = whole.clone();
            damaged[at] ^= 1;
            std::fs::write(&path, &damaged).unwrap();
            read(&path).unwrap_err();
        }
        cache.write(&path, b"code").unwrap();
        assert_eq!(std::fs::read(&path).unwrap(), whole);
    }

    #[cfg(unix)]
    #[test]
    fn what_others_can_write_is_not_used() {
        use std::os::unix::fs::PermissionsExt;
        let folder = tempfile::tempdir().unwrap();
        let mode = |path: &Path, mode| std::fs::set_permissions(path, PermissionsExt::from_mode(mode)).unwrap();
        let cache = cache(folder.path());
        let path = cache.path("d");
        cache.write(&path, b"code").unwrap();
        mode(&path, 0o620);
        assert!(read(&path).unwrap_err().contains("others can write"));
        mode(folder.path(), 0o777);
        assert!(prepare(folder.path()).unwrap_err().contains("FLUXMILL_CACHE_DIR"));
        mode(folder.path(), 0o700);
        prepare(folder.path()).unwrap();

        let new = folder.path().join("a/b");
        prepare(&new).unwrap();
        assert_eq!(new.metadata().unwrap().permissions().mode() & 0o777, 0o700);
        assert!(prepare(&path).is_err(), "a file is no folder");
    }

    #[test]
    fn the_oldest_files_go_first() {
        let folder = tempfile::tempdir().unwrap();
        let cache = cache(folder.path());
        let day = std::time::Duration::from_secs(86_400);
        for i in 0..FILES_MAX + 3 {
            let file = create(&cache.path(&i.to_string())).unwrap();
            file.set_modified(std::time::SystemTime::UNIX_EPOCH + day * i as u32).unwrap();
        }
        std::fs::write(folder.path().join("not-ours"), "").unwrap();
        cache.prune();
        assert!(!cache.path("2").exists() && cache.path("3").exists() && folder.path().join("not-ours").exists());
    }
}
