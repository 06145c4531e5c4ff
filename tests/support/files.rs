//! The files of the repository that a person wrote.

use std::fs;
use std::path::PathBuf;

use super::chain::repository;

/// The files with one of these extensions; what a build made is left out.
pub(crate) fn with_extension(extensions: &[&str]) -> Vec<PathBuf> {
    let mut found = Vec::new();
    let mut folders = vec![repository("")];
    while let Some(folder) = folders.pop() {
        for entry in fs::read_dir(&folder).expect("a folder of the repository") {
            let path = entry.expect("an entry").path();
            let name = path.file_name().and_then(|name| name.to_str()).unwrap_or_default();
            // Whoever built in here marked it: a target folder has this file.
            let built = path.join("CACHEDIR.TAG").is_file();
            if path.is_dir() && name != ".git" && !built {
                folders.push(path);
            } else if path.extension().is_some_and(|found| extensions.iter().any(|&extension| found == extension)) {
                found.push(path);
            }
        }
    }
    found.sort();
    found
}
