//! The documents: every pipeline file in them passes `fluxmill check`, every link leads somewhere.

use std::collections::{BTreeMap, BTreeSet};
use std::fs;
use std::path::{Path, PathBuf};
use std::time::Duration;

use support::chain::guest;
use support::files;
use support::process::Fluxmill;
use tempfile::TempDir;

mod support;

const LIMIT: Duration = Duration::from_secs(60);

/// A Markdown file: its lines outside of code, and its blocks of code.
struct Document {
    path: PathBuf,
    text: String,
    blocks: Vec<Block>,
}

/// A fenced block.
struct Block {
    line: usize,
    info: String,
    code: String,
}

impl Document {
    fn read(path: PathBuf) -> Self {
        let (mut text, mut blocks) = (String::new(), Vec::new());
        let mut open: Option<Block> = None;
        let whole = fs::read_to_string(&path).expect("a document is UTF-8");
        for (number, line) in whole.lines().enumerate() {
            match (line.trim_start().strip_prefix("```"), &mut open) {
                (Some(info), None) => {
                    open = Some(Block { line: number + 1, info: info.trim().to_owned(), code: String::new() });
                }
                (Some(_), Some(_)) => blocks.extend(open.take()),
                (None, Some(block)) => block.code += &format!("{line}\n"),
                (None, None) => text += &format!("{line}\n"),
            }
        }
        assert!(open.is_none(), "{}: a block of code is not closed", path.display());
        Self { path, text, blocks }
    }

    fn all() -> Vec<Self> {
        let documents: Vec<Self> = files::with_extension(&["md"]).into_iter().map(Self::read).collect();
        assert!(documents.iter().any(|document| document.path.ends_with("README.md")), "no README.md");
        documents
    }

    /// The names that a link may have behind `#`, made from the headings as hosts of repositories make them.
    fn anchors(&self) -> BTreeSet<String> {
        let mut seen: BTreeMap<String, usize> = BTreeMap::new();
        let headings = self.text.lines().filter(|line| line.starts_with('#'));
        headings
            .map(|line| {
                let title = line.trim_start_matches('#').trim().to_lowercase();
                let kept = |c: &char| c.is_alphanumeric() || matches!(c, ' ' | '-' | '_');
                let name: String = title.chars().filter(kept).map(|c| if c == ' ' { '-' } else { c }).collect();
                let times = seen.entry(name.clone()).or_default();
                *times += 1;
                if *times == 1 { name } else { format!("{name}-{}", *times - 1) }
            })
            .collect()
    }

    /// Where the links lead, `[text](target)`; code spans are left out.
    fn links(&self) -> Vec<String> {
        let mut links = Vec::new();
        for line in self.text.lines() {
            let prose: String = line.split('`').step_by(2).collect::<Vec<_>>().join(" code ");
            let mut rest = prose.as_str();
            while let Some((_, after)) = rest.split_once("](") {
                let Some((target, behind)) = after.split_once(')') else { break };
                links.push(target.trim().to_owned());
                rest = behind;
            }
        }
        links
    }
}

/// A block of YAML is a whole pipeline file; one that is not says so: "```yaml fragment".
#[test]
fn every_pipeline_file_in_a_document_is_good() {
    let mut checked = 0;
    for document in Document::all() {
        for block in document.blocks.iter().filter(|block| block.info.starts_with("yaml")) {
            let place = format!("{}:{}", document.path.display(), block.line);
            match block.info.as_str() {
                "yaml" => check(&block.code, &place),
                "yaml fragment" => continue,
                other => panic!("{place}: ```{other}: write `yaml`, or `yaml fragment` for what is no whole file"),
            }
            checked += 1;
        }
    }
    assert!(checked >= 2, "only {checked} blocks found");
}

/// Checks a file in a folder of its own, where each component that it names is the identity function, and each other
/// file an empty one.
fn check(yaml: &str, place: &str) {
    let folder = TempDir::new().expect("a folder");
    let values = |key: &'static str| {
        yaml.lines().filter_map(move |line| {
            let (_, value) = line.split('#').next()?.split_once(key)?;
            value.split([',', '}']).next().map(|value| value.trim().trim_matches('"').to_owned())
        })
    };
    for wasm in values("wasm:") {
        let path = inside(&folder.path().join("example"), &wasm);
        fs::copy(guest("identity"), path).expect("copy the component");
    }
    for file in ["ca:", "certificate:", "key:", "file:"].into_iter().flat_map(values) {
        fs::write(inside(&folder.path().join("example"), &file), "").expect("write the file");
    }
    // A file without a `name:` takes that of its folder.
    let path = inside(folder.path(), "example/chain.yaml");
    fs::write(&path, yaml).expect("write the file");
    // Variables that must be set are set.
    let names = yaml.split("${").skip(1).filter_map(|rest| rest.split_once('}')).map(|(name, _)| name);
    let set: Vec<_> = names.filter(|name| !name.contains(":-")).map(|name| (name, "value")).collect();
    let run = Fluxmill::start(["check", &path.display().to_string()], &set, &[]).expect("the binary starts");
    let ended = run.finish(LIMIT).expect("an end without a WARN or ERROR line");
    assert_eq!(ended.code, Some(0), "{place}:\n{}", ended.stderr);
}

/// A path in the folder, its own folders made. One that leads out of it is a mistake of the document.
fn inside(folder: &Path, relative: &str) -> PathBuf {
    let relative = Path::new(relative);
    let tame = relative.components().all(|part| matches!(part, std::path::Component::Normal(_)));
    assert!(tame, "{} is not below the file's folder", relative.display());
    let path = folder.join(relative);
    fs::create_dir_all(path.parent().expect("a folder")).expect("make the folder");
    path
}

#[test]
fn every_link_leads_somewhere() {
    let documents: BTreeMap<PathBuf, Document> = Document::all()
        .into_iter()
        .map(|document| (document.path.canonicalize().expect("it was just read"), document))
        .collect();
    let mut broken = Vec::new();
    let mut followed = 0;
    for (path, document) in &documents {
        for link in document.links() {
            if link.contains("://") || link.starts_with("mailto:") {
                continue;
            }
            followed += 1;
            let (file, anchor) = link.split_once('#').map_or((link.as_str(), None), |(file, at)| (file, Some(at)));
            let target = if file.is_empty() { Ok(path.clone()) } else { path.with_file_name(file).canonicalize() };
            let Ok(target) = target else {
                broken.push(format!("{}: {link}: no such file", path.display()));
                continue;
            };
            let known = anchor.is_none_or(|anchor| {
                documents.get(&target).is_some_and(|document| document.anchors().contains(anchor))
            });
            if !known {
                broken.push(format!("{}: {link}: no such heading", path.display()));
            }
        }
    }
    assert!(broken.is_empty(), "{}", broken.join("\n"));
    assert!(followed >= 5, "only {followed} links found");
}

#[test]
fn anchors_are_made_as_hosts_make_them() {
    let text =
        "# What is promised, and what is not yet\n## TLS and SASL\n## `order: key`\n## TLS and SASL\n".to_owned();
    let document = Document { path: PathBuf::new(), text, blocks: Vec::new() };
    let expected = ["what-is-promised-and-what-is-not-yet", "tls-and-sasl", "order-key", "tls-and-sasl-1"];
    assert_eq!(document.anchors(), expected.map(str::to_owned).into());
}

#[test]
fn links_in_code_are_no_links() {
    let text = "See [a](a.md), `[b](b.md)` and [c d](../c.md#d).\n".to_owned();
    let document = Document { path: PathBuf::new(), text, blocks: Vec::new() };
    assert_eq!(document.links(), ["a.md", "../c.md#d"]);
}
