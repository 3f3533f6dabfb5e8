//! The configuration file: a publisher's default flags for every model.
//!
//! ```toml
//! [make]                       # `quantier make` and `quantier frontier`
//! file = ["texts/mixed.txt"]   # keys are the flags' long names; relative paths start at the file
//!
//! [publish]                    # `quantier publish` and `quantier make --publish`
//! quantized-by = "me"
//! ```
//!
//! The command line takes precedence. Defaults are appended to it before it is parsed: flags have
//! one meaning, and a recorded command is complete.

use super::Cli;
use super::config_keys::{Key, Kind, SECTIONS, Section};
use anyhow::{Context, bail, ensure};
use clap::CommandFactory;
use clap::parser::ValueSource;
use quantier_core::words::distance;
use std::ffi::OsString;
use std::path::{Path, PathBuf};
use toml::de::{DeTable, DeValue};

/// Options that choose the file.
#[derive(clap::Args)]
#[command(next_help_heading = "Defaults")]
#[group(id = "defaults")]
pub struct Options {
    /// Configuration file with defaults for make, frontier and publish; see `quantier config`
    #[arg(long, value_name = "FILE", global = true)]
    config: Option<PathBuf>,
    /// Ignore the configuration file
    #[arg(long, global = true)]
    no_config: bool,
}

/// Environment variable with the file's path.
const VARIABLE: &str = "QUANTIER_CONFIG";
/// Maximum size of the file in bytes.
const MAX_BYTES: u64 = 1 << 20;
/// Flags that choose sizes: one on the command line replaces all of the file's.
const SIZES: [&str; 6] = ["bpw", "size", "kld", "like", "fit", "variants"];

/// A default: a key with its values as command-line arguments.
struct Entry {
    section: &'static Section,
    key: &'static Key,
    values: Vec<String>,
}

impl Entry {
    /// The flag with its values, each as one argument.
    fn arguments(&self) -> impl Iterator<Item = String> {
        self.values.iter().map(|value| match self.key.kind {
            Kind::Flag => format!("--{}", self.key.name),
            _ => format!("--{}={value}", self.key.name),
        })
    }
}

/// A checked configuration file.
pub struct Config {
    pub path: PathBuf,
    entries: Vec<Entry>,
}

impl Options {
    /// Exits if both flags are given, which clap does not detect for global flags.
    pub fn check(&self) {
        if self.no_config && self.config.is_some() {
            let kind = clap::error::ErrorKind::ArgumentConflict;
            Cli::command()
                .error(kind, "--config and --no-config exclude each other")
                .exit();
        }
    }

    /// Path of the file, and true if the user named it, so that it must exist.
    pub fn place(&self) -> Option<(PathBuf, bool)> {
        let set = |name: &str| {
            std::env::var_os(name)
                .filter(|value| !value.is_empty())
                .map(PathBuf::from)
        };
        if self.no_config {
            return None;
        }
        if let Some(named) = self.config.clone().or_else(|| set(VARIABLE)) {
            return Some((named, true));
        }
        // The XDG specification ignores relative paths.
        let base = set("XDG_CONFIG_HOME")
            .filter(|path| path.is_absolute())
            .or_else(|| Some(home()?.join(".config")));
        Some((base?.join("quantier").join("config.toml"), false))
    }

    /// The file, if it exists.
    pub fn read(&self) -> anyhow::Result<Option<Config>> {
        let Some((path, named)) = self.place() else {
            return Ok(None);
        };
        let cannot = || format!("cannot read the configuration file {}", path.display());
        match path.metadata() {
            Err(error) if error.kind() == std::io::ErrorKind::NotFound && !named => {
                return Ok(None);
            }
            meta => {
                let meta = meta.with_context(cannot)?;
                ensure!(
                    meta.is_file(),
                    "{}: not a file; --no-config ignores it",
                    path.display()
                );
                ensure!(
                    meta.len() <= MAX_BYTES,
                    "{}: too long for a configuration file",
                    path.display()
                );
            }
        }
        let text = std::fs::read_to_string(&path).with_context(cannot)?;
        let entries = entries(&text, &path).map_err(|(line, what)| {
            anyhow::anyhow!(
                "{}, line {line}: {what} (`quantier config --example` lists all keys)",
                path.display()
            )
        })?;
        Ok(Some(Config { path, entries }))
    }
}

fn home() -> Option<PathBuf> {
    ["HOME", "USERPROFILE"]
        .iter()
        .find_map(std::env::var_os)
        .filter(|home| !home.is_empty())
        .map(PathBuf::from)
}

type At<T> = Result<T, (usize, String)>;

/// The entries of a file, or an error with its line.
fn entries(text: &str, path: &Path) -> At<Vec<Entry>> {
    let line = |at: usize| 1 + text.bytes().take(at).filter(|byte| *byte == b'\n').count();
    let parsed = DeTable::parse(text).map_err(|error| {
        let at = error.span().map_or(0, |span| span.start);
        (
            line(at),
            format!("not valid TOML: {}", error.message().replace('\n', " ")),
        )
    })?;
    let mut all = Vec::new();
    for (name, table) in parsed.get_ref() {
        let at = line(name.span().start);
        let name: &str = name.get_ref();
        let Some(section) = SECTIONS.iter().find(|section| section.name == name) else {
            return Err((at, unknown(name, None)));
        };
        let DeValue::Table(table) = table.get_ref() else {
            return Err((
                at,
                format!("'{name}' is a section: write [{name}], and the keys below it"),
            ));
        };
        for (name, value) in table {
            let at = line(name.span().start);
            let name: &str = name.get_ref();
            let Some(key) = section.keys.iter().find(|key| key.name == name) else {
                return Err((at, unknown(name, Some(section))));
            };
            let wrong = || {
                (
                    at,
                    format!(
                        "{name} must be {}, not {}",
                        key.kind.words(),
                        described(value.get_ref())
                    ),
                )
            };
            let values = key.kind.typed(value.get_ref()).ok_or_else(wrong)?;
            values
                .iter()
                .try_for_each(|text| (key.check)(text))
                .map_err(|what| (at, format!("{name}: {what}")))?;
            let values = match key.kind {
                Kind::Path | Kind::Paths => {
                    values.iter().map(|value| resolved(value, path)).collect()
                }
                _ => values,
            };
            let entry = Entry {
                section,
                key,
                values,
            };
            check_values(&entry).map_err(|what| (at, format!("{name}: {what}")))?;
            all.push(entry);
        }
    }
    // In the order of the sample file.
    let place = |entry: &Entry| section_and_key(entry.key.name, entry.section.name);
    all.sort_by_key(place);
    Ok(all)
}

fn section_and_key(key: &str, section: &str) -> (usize, usize) {
    let s = SECTIONS.iter().position(|s| s.name == section).unwrap_or(0);
    (
        s,
        SECTIONS[s]
            .keys
            .iter()
            .position(|k| k.name == key)
            .unwrap_or(0),
    )
}

/// Error for an unknown key, with the nearest valid key.
fn unknown(name: &str, section: Option<&Section>) -> String {
    let near =
        |section: &'static Section| section.keys.iter().map(move |key| (section.name, key.name));
    let known = SECTIONS.iter().flat_map(near);
    match (known.clone().find(|(_, key)| *key == name), section) {
        (Some((home, _)), Some(section)) => {
            format!(
                "'{name}' belongs below [{home}], not below [{}]",
                section.name
            )
        }
        (Some((home, _)), None) => format!("'{name}' belongs below [{home}], not above it"),
        (None, Some(section)) => {
            let all = section.keys.iter().map(|key| key.name);
            let nearest = all
                .min_by_key(|key| distance(key, name))
                .unwrap_or_default();
            format!(
                "no key '{name}' in [{}]; the nearest is {nearest}",
                section.name
            )
        }
        (None, None) => {
            let parts = SECTIONS.iter().map(|section| format!("[{}]", section.name));
            let nearest = parts
                .chain(known.map(|(_, key)| key.to_owned()))
                .min_by_key(|key| distance(key, name));
            format!(
                "no key or section '{name}'; the nearest is {}",
                nearest.unwrap_or_default()
            )
        }
    }
}

/// Type of a value, for messages.
fn described(value: &DeValue<'_>) -> String {
    match value {
        DeValue::Array(all) => match all
            .iter()
            .find(|one| !matches!(one.get_ref(), DeValue::String(_)))
        {
            Some(other) => format!("a list with {} in it", described(other.get_ref())),
            None => "a list".into(),
        },
        DeValue::Table(_) => "a table".into(),
        DeValue::String(text) => format!("the string '{text}'"),
        DeValue::Integer(number) => number.to_string(),
        DeValue::Float(number) => number.to_string(),
        DeValue::Boolean(flag) => flag.to_string(),
        DeValue::Datetime(time) => time.to_string(),
    }
}

/// Resolves a path relative to the file's directory or, with `~/`, to the home directory.
fn resolved(value: &str, file: &Path) -> String {
    let path = match (value.strip_prefix("~/"), home()) {
        (Some(rest), Some(home)) => home.join(rest),
        _ => file.parent().unwrap_or(Path::new("")).join(value),
    };
    path.to_string_lossy().into_owned()
}

/// Checks the values with the flag's own parser.
fn check_values(entry: &Entry) -> Result<(), String> {
    let command = entry.section.commands[0];
    let needed = if command == "publish" {
        &["DIR"][..]
    } else {
        &["MODEL", "-o", "OUT"]
    };
    let line = ["quantier", command]
        .into_iter()
        .chain(needed.iter().copied())
        .map(str::to_owned);
    let parsed = Cli::command().try_get_matches_from(line.chain(entry.arguments()));
    parsed.map(drop).map_err(|error| {
        let text = error.to_string();
        text.lines()
            .next()
            .unwrap_or_default()
            .trim_start_matches("error: ")
            .to_owned()
    })
}

impl Config {
    /// The arguments to add to a command line.
    pub fn arguments(&self, command: &str, matches: &clap::ArgMatches) -> Vec<String> {
        let cli = Cli::command();
        let known = |key: &str| {
            cli.find_subcommand(command)
                .is_some_and(|c| c.get_arguments().any(|arg| arg.get_long() == Some(key)))
        };
        let typed = |key: &str| {
            let id = key.replace('-', "_");
            matches.try_contains_id(&id).unwrap_or(false)
                && matches.value_source(&id) == Some(ValueSource::CommandLine)
        };
        let published = command == "publish" || typed("publish");
        let applies = |entry: &&Entry| {
            let key = entry.key.name;
            entry.section.commands.contains(&command)
                && known(key)
                && !typed(key)
                && (entry.section.name != "publish" || published)
                && !(SIZES.contains(&key) && SIZES.iter().any(|size| typed(size)))
        };
        self.entries
            .iter()
            .filter(applies)
            .flat_map(Entry::arguments)
            .collect()
    }

    /// All defaults by section.
    pub fn parts(
        &self,
    ) -> impl Iterator<Item = (&'static str, &'static [&'static str], Vec<String>)> {
        SECTIONS.iter().map(|section| {
            let own = self
                .entries
                .iter()
                .filter(|entry| entry.section.name == section.name);
            (
                section.name,
                section.commands,
                own.flat_map(Entry::arguments).collect(),
            )
        })
    }
}

/// The command line with the file's arguments added at the end, but before `--`.
pub fn extended(typed: &[OsString], added: &[String]) -> Vec<OsString> {
    let end = typed
        .iter()
        .position(|argument| argument == "--")
        .unwrap_or(typed.len());
    let mut all = typed[..end].to_vec();
    all.extend(added.iter().map(OsString::from));
    all.extend_from_slice(&typed[end..]);
    all
}

/// A sample file: every key with its flag's description and a value, commented out.
pub fn example() -> String {
    let cli = Cli::command();
    let mut text = String::from(
        "# Quantier's defaults for every model. Flags on the command line take precedence; --no-config ignores this\n\
         # file. Paths are relative to it. Uncomment what you need.\n",
    );
    for section in &SECTIONS {
        let whose = match section.name {
            "publish" => "quantier publish and quantier make --publish",
            _ => {
                "quantier make and quantier frontier; sizes apply only if the command line has none"
            }
        };
        text += &format!("\n# {whose}\n[{}]\n", section.name);
        let command = cli.find_subcommand(section.commands[0]);
        for key in section.keys {
            let flag = command.and_then(|c| {
                c.get_arguments()
                    .find(|arg| arg.get_long() == Some(key.name))
            });
            let help = flag
                .and_then(|flag| flag.get_help())
                .map(|help| help.to_string())
                .unwrap_or_default();
            let first = first_clause(&help);
            text += &format!("\n# {first}\n#{} = {}\n", key.name, key.example);
        }
    }
    text
}

/// A help text up to its first colon, semicolon or end of a sentence; `llama.cpp` ends none.
fn first_clause(help: &str) -> &str {
    let ends = |(at, c): &(usize, char)| match c {
        ';' | ':' => true,
        '.' => help[at + 1..]
            .chars()
            .next()
            .is_none_or(char::is_whitespace),
        _ => false,
    };
    let end = help.char_indices().find(ends);
    end.map_or(help, |(at, _)| &help[..at])
}

/// The command line with the file's defaults, parsed again; `None` if there are none to add.
pub fn with_defaults(
    options: &Options,
    typed: &[OsString],
    matches: &clap::ArgMatches,
) -> anyhow::Result<Option<(Vec<OsString>, clap::ArgMatches)>> {
    let Some((command, sub)) = matches.subcommand() else {
        return Ok(None);
    };
    if !SECTIONS
        .iter()
        .any(|section| section.commands.contains(&command))
    {
        return Ok(None);
    }
    let Some(config) = options.read()? else {
        return Ok(None);
    };
    let added = config.arguments(command, sub);
    if added.is_empty() {
        return Ok(None);
    }
    let words: Vec<String> = added
        .iter()
        .map(|argument| quantier_report::numbers::shell(argument))
        .collect();
    super::messages::note!("{} adds {}", config.path.display(), words.join(" "));
    let all = extended(typed, &added);
    match Cli::command().try_get_matches_from(&all) {
        Ok(matches) => Ok(Some((all, matches))),
        Err(error) => bail!(
            "with the defaults of {}: {}",
            config.path.display(),
            error
                .to_string()
                .lines()
                .next()
                .unwrap_or_default()
                .trim_start_matches("error: ")
        ),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn line_and_error(text: &str) -> (usize, String) {
        entries(text, Path::new("/c/config.toml"))
            .err()
            .unwrap_or_else(|| panic!("no error: {text}"))
    }

    fn arguments(text: &str, typed: &str) -> Vec<String> {
        let entries =
            entries(text, Path::new("/c/config.toml")).unwrap_or_else(|error| panic!("{error:?}"));
        let config = Config {
            path: "/c/config.toml".into(),
            entries,
        };
        let matches = Cli::command().get_matches_from(typed.split(' '));
        let (command, sub) = matches.subcommand().unwrap();
        config.arguments(command, sub)
    }

    const FILE: &str = "
[publish]
quantized-by = \"me\"
tag = [\"a\", \"b\"]
copy = true

[make]
file = [\"t/a.txt\", \"/abs/b.txt\"]
bpw = [3.5, 4]
variants = 5
";

    #[test]
    fn the_command_line_takes_precedence() {
        let all = [
            "--file=/c/t/a.txt",
            "--file=/abs/b.txt",
            "--variants=5",
            "--bpw=3.5",
            "--bpw=4",
        ];
        assert_eq!(arguments(FILE, "quantier make M -o O"), all);
        assert_eq!(
            arguments(FILE, "quantier make M -o O --like Q4_K_M"),
            all[..2],
            "one size typed, and no other counts"
        );
        assert_eq!(arguments(FILE, "quantier make M -o O -f x"), all[2..]);
        assert_eq!(
            arguments(FILE, "quantier frontier M -o O"),
            all[..2],
            "it has no sizes"
        );
        let card = ["--quantized-by=me", "--tag=a", "--tag=b", "--copy"];
        assert_eq!(arguments(FILE, "quantier publish D"), card);
        assert_eq!(
            arguments(FILE, "quantier publish D --tag c --copy"),
            card[..1]
        );
        assert_eq!(
            arguments(FILE, "quantier make M -o O --publish --variants 2 -f x"),
            card
        );
    }

    #[test]
    fn errors_name_their_line() {
        for (text, line, part) in [
            ("a = ", 1, "not valid TOML"),
            (
                "[make]\n\nfile = 7",
                3,
                "file must be a path in quotes or a list of paths, not 7",
            ),
            ("[make]\nfile = [\"a\", 7]", 2, "a list with 7 in it"),
            (
                "[make]\nvariants = \"8\"",
                2,
                "variants must be a whole number, not the string '8'",
            ),
            ("[make]\nvariants = -1", 2, "a whole number"),
            ("[make]\nvariants = 41", 2, "1..=40"),
            ("[make]\nbpw = [4.25, -1]", 2, "a number or a list"),
            ("[make]\nbpw = 0", 2, "bpw: "),
            ("[make]\nlike = \"Q4_K_X\"", 2, "Q4_K_M"),
            ("[make]\ntypes = \"k,q9_K\"", 2, "q9_K"),
            (
                "[make]\nvariant = 8",
                2,
                "no key 'variant' in [make]; the nearest is variants",
            ),
            (
                "[make]\nquantized-by = \"me\"",
                2,
                "belongs below [publish]",
            ),
            ("quantized-by = \"me\"", 1, "belongs below [publish]"),
            ("[publisher]\n", 1, "the nearest is [publish]"),
            ("make = 7", 1, "write [make]"),
            (
                "[publish]\nquantized_by = \"me\"",
                2,
                "the nearest is quantized-by",
            ),
            ("[publish]\nrepo = \"me\"", 2, "repo: "),
            ("[publish]\nlanguage = [\"en\", \"a/b\"]", 2, "language: "),
            ("[publish]\ncopy = 1", 2, "true or false"),
            ("[make]\nfile = \"a\"\nfile = \"b\"", 3, "duplicate"),
        ] {
            let (at, what) = line_and_error(text);
            assert!(
                at == line && what.contains(part),
                "{text:?}: line {at}: {what}"
            );
        }
    }

    #[test]
    fn the_sample_parses_with_and_without_comments() {
        let none =
            entries(&example(), Path::new("c.toml")).unwrap_or_else(|error| panic!("{error:?}"));
        assert!(none.is_empty());
        let lines = example();
        let taken: Vec<_> = lines
            .lines()
            .map(|line| {
                line.strip_prefix('#')
                    .filter(|rest| !rest.starts_with(' '))
                    .unwrap_or(line)
            })
            .collect();
        let all = entries(&taken.join("\n"), Path::new("c.toml"))
            .unwrap_or_else(|error| panic!("{error:?}"));
        assert_eq!(
            all.len(),
            SECTIONS
                .iter()
                .map(|section| section.keys.len())
                .sum::<usize>()
        );
    }

    #[test]
    fn every_key_is_a_flag() {
        let cli = Cli::command();
        for section in &SECTIONS {
            for command in [section.commands[0], "make"] {
                let command = cli.find_subcommand(command).unwrap();
                for key in section.keys {
                    assert!(
                        command
                            .get_arguments()
                            .any(|arg| arg.get_long() == Some(key.name)),
                        "{}",
                        key.name
                    );
                }
            }
        }
    }

    #[test]
    fn defaults_are_added_before_a_double_dash() {
        let typed: Vec<OsString> = ["quantier", "make", "--", "M"].map(OsString::from).to_vec();
        assert_eq!(
            extended(&typed, &["--seed=2".into()]),
            ["quantier", "make", "--seed=2", "--", "M"]
        );
    }
}
