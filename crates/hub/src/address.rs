//! Addresses of models on the Hub, and the origin of a directory in the Hub's cache.

use std::fmt;
use std::path::{Component, Path};

/// Prefix of an address.
pub const SCHEME: &str = "hf://";
/// Length limit of the Hub's names.
const MAX_NAME: usize = 96;
/// Length limit of revisions and paths of files.
const MAX_PATH: usize = 512;

/// A model on the Hub, or one file of it.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Address {
    /// `ORG/NAME`, or `NAME` for a repository without an owner.
    pub repository: String,
    /// A branch, a tag, a commit or `refs/pr/N`.
    pub revision: String,
    /// The file, if the address names one.
    pub file: Option<String>,
}

impl Address {
    /// Parses `hf://ORG/NAME[@REVISION][/FILE]`. A slash in a revision is written `%2F`, except in
    /// `refs/pr/N`.
    ///
    /// # Errors
    /// Another scheme, or a name, revision or file that is invalid on the Hub.
    pub fn parse(text: &str) -> Result<Address, String> {
        let bad = |what: &str| {
            format!("{text}: {what}; hf://ORG/NAME, hf://ORG/NAME@REVISION or either with /FILE")
        };
        let rest = text
            .strip_prefix(SCHEME)
            .ok_or_else(|| bad("an address begins with hf://"))?;
        let rest = rest.trim_end_matches('/');
        let (before, at) = match rest.split_once('@') {
            Some((before, at)) => (before, Some(at)),
            None => (rest, None),
        };
        let mut parts = before.splitn(3, '/');
        let (owner, name) = (parts.next().unwrap_or_default(), parts.next());
        let repository = name.map_or(owner.to_owned(), |name| format!("{owner}/{name}"));
        let mut file = parts.next().map(str::to_owned);
        let mut revision = "main".to_owned();
        if let Some(at) = at {
            if file.is_some() {
                return Err(bad("the revision goes after the name and before the file"));
            }
            // refs/pr/7 and refs/convert/parquet are written unescaped.
            let slashes = if at.starts_with("refs/") { 3 } else { 1 };
            let end = at
                .match_indices('/')
                .nth(slashes - 1)
                .map_or(at.len(), |(i, _)| i);
            revision = at[..end].replace("%2F", "/").replace("%2f", "/");
            file = at.get(end + 1..).map(str::to_owned);
        }
        if !repository.split('/').all(is_name) {
            return Err(bad("that is not a model name"));
        }
        if !is_inside(&revision) || revision.contains([' ', ':', '~', '^', '?', '*', '[', '#', '%'])
        {
            return Err(bad("that is not a revision"));
        }
        if file.as_deref().is_some_and(|file| !is_inside(file)) {
            return Err(bad("that is not a file of a model"));
        }
        Ok(Address {
            repository,
            revision,
            file,
        })
    }

    /// True if the path begins with the scheme of an address.
    pub fn is_meant(text: &Path) -> bool {
        text.to_str().is_some_and(|text| text.starts_with(SCHEME))
    }
}

impl fmt::Display for Address {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{SCHEME}{}", self.repository)?;
        if self.revision != "main" {
            write!(f, "@{}", self.revision)?;
        }
        self.file.iter().try_for_each(|file| write!(f, "/{file}"))
    }
}

/// True for a valid name of an owner or a model.
fn is_name(name: &str) -> bool {
    let known = |c: char| c.is_ascii_alphanumeric() || "-_.".contains(c);
    let ends = |c: char| c == '-' || c == '.';
    (1..=MAX_NAME).contains(&name.len())
        && name.chars().all(known)
        && !name.starts_with(ends)
        && !name.ends_with(ends)
        && !name.contains("--")
        && !name.contains("..")
}

/// True if a relative path with slashes stays inside its parent directory, on every system.
pub(super) fn is_inside(path: &str) -> bool {
    let plain = |c: char| !c.is_control() && !"\\:<>|\"".contains(c);
    let part = |part: &str| !part.is_empty() && part != "." && part != ".." && part.len() <= 255;
    path.len() <= MAX_PATH
        && path.chars().all(plain)
        && path.split('/').all(part)
        && Path::new(path)
            .components()
            .all(|c| matches!(c, Component::Normal(_)))
}

/// Origin of a directory in the Hub's cache.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Origin {
    /// `ORG/NAME`.
    pub repository: String,
    /// The commit.
    pub commit: String,
}

/// The model of a path inside `models--ORG--NAME/snapshots/COMMIT`; `None` for any other path.
pub fn origin(path: &Path) -> Option<Origin> {
    let parts: Vec<&str> = path
        .components()
        .map(|c| c.as_os_str().to_str().unwrap_or_default())
        .collect();
    let snapshot = parts
        .windows(3)
        .find(|w| w[0].starts_with("models--") && w[1] == "snapshots" && is_commit(w[2]))?;
    let repository = snapshot[0].strip_prefix("models--")?.replace("--", "/");
    let is_repository = repository.split('/').count() <= 2 && repository.split('/').all(is_name);
    is_repository.then(|| Origin {
        repository,
        commit: snapshot[2].to_owned(),
    })
}

/// True for the hash of a git commit.
pub(super) fn is_commit(text: &str) -> bool {
    text.len() == 40
        && text
            .bytes()
            .all(|b| b.is_ascii_digit() || (b'a'..=b'f').contains(&b))
}

#[cfg(test)]
mod tests {
    use super::*;

    fn parsed(text: &str) -> (String, String, Option<String>) {
        let address = Address::parse(text).unwrap();
        (address.repository, address.revision, address.file)
    }

    #[test]
    fn addresses_are_parsed() {
        let of = |repository: &str, revision: &str, file: Option<&str>| {
            (
                repository.to_owned(),
                revision.to_owned(),
                file.map(str::to_owned),
            )
        };
        assert_eq!(parsed("hf://org/name"), of("org/name", "main", None));
        assert_eq!(parsed("hf://gpt2/"), of("gpt2", "main", None));
        assert_eq!(
            parsed("hf://org/na.me-1.5@v1"),
            of("org/na.me-1.5", "v1", None)
        );
        assert_eq!(
            parsed("hf://org/name/Q4/a.gguf"),
            of("org/name", "main", Some("Q4/a.gguf"))
        );
        assert_eq!(
            parsed("hf://org/name@refs/pr/7/a.gguf"),
            of("org/name", "refs/pr/7", Some("a.gguf"))
        );
        assert_eq!(
            parsed("hf://org/name@feature%2Fx/a.gguf"),
            of("org/name", "feature/x", Some("a.gguf"))
        );
        for text in [
            "hf://org/name",
            "hf://org/name@v1",
            "hf://org/name@refs/pr/7/d/a.gguf",
        ] {
            assert_eq!(Address::parse(text).unwrap().to_string(), text);
        }
    }

    #[test]
    fn addresses_that_would_leave_the_cache_are_refused() {
        for text in [
            "hf://",
            "hf:///name",
            "hf://org/..",
            "hf://../name",
            "hf://org/na--me",
            "hf://org/na me",
            "hf://org/name@",
            "hf://org/name@..",
            "hf://org/name@a%2F..%2Fb",
            "hf://org/name@a b",
            "hf://org/name/../x",
            "hf://org/name//x",
            "hf://org/name/a\\b",
            "hf://org/name/c:x",
            "hf://org/name/a\n.gguf",
            "hf://org/name/f@main",
            "org/name",
        ] {
            assert!(Address::parse(text).is_err(), "{text}");
        }
        assert!(Address::parse(&format!("hf://org/{}", "n".repeat(97))).is_err());
    }

    #[test]
    fn snapshots_are_traced_to_their_model() {
        let commit = "0123456789abcdef0123456789abcdef01234567";
        let path = format!("/c/hub/models--org--na.me/snapshots/{commit}");
        let is = Origin {
            repository: "org/na.me".into(),
            commit: commit.into(),
        };
        assert_eq!(origin(Path::new(&path)), Some(is.clone()));
        assert_eq!(origin(&Path::new(&path).join("Q4/a.gguf")), Some(is));
        for other in [
            "/c/models--org--name",
            "/c/models--org--name/snapshots/main",
            "models",
            "",
        ] {
            assert_eq!(origin(Path::new(other)), None, "{other}");
        }
    }
}
