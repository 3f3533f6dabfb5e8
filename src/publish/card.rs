//! Model card, from a Markdown template.

use super::facts::{Facts, Output};
use super::front_matter::front_matter;
use crate::convert::ProjectorFile;
use crate::plan::file_type::FileType;
use crate::report::data::{Distance, File, Frontier, Preset, Score, Text};
pub use crate::report::numbers::shell;
use crate::report::numbers::{clean, count, figure, nats, percent, size, type_name, weights};
use minijinja::{Environment, Value, context};
use std::borrow::Cow;

/// Built-in template.
pub(crate) const TEMPLATE: &str = include_str!("card.md");
/// Documentation of the template's variables, printed before it by `--print-template`.
pub(crate) const VARIABLES: &str = include_str!("card-variables.txt");

/// Public name of the reference.
const REFERENCE: &str = "llama.cpp (commit 0c1e57098)";
/// Placeholder for unknown values.
const NONE: &str = "–";
/// Recommended use by mean KL divergence, up to a limit in nats.
const PURPOSES: [(f64, &str); 6] = [
    (0.003, "near-lossless, if size hardly matters"),
    (0.012, "almost indistinguishable from the original"),
    (0.035, "recommended: small losses"),
    (0.1, "for limited memory: occasional visible losses"),
    (0.3, "if nothing larger fits: clear losses"),
    (f64::INFINITY, "last resort"),
];

/// A published file.
pub(crate) struct Published<'f> {
    /// Entry in frontier.json.
    pub file: &'f File,
    /// SHA-256 in hexadecimal.
    pub sha256: String,
    /// Name of its Modelfile; none for a reranker.
    pub modelfile: Option<String>,
}

/// A published projector.
pub(crate) struct PublishedProjector<'f> {
    /// The file.
    pub file: &'f ProjectorFile,
    /// SHA-256 in hexadecimal.
    pub sha256: String,
}

/// The large files of a publication.
pub(crate) struct Contents<'f> {
    /// The models, in order of size.
    pub files: Vec<Published<'f>>,
    /// The projector, if there is one.
    pub projector: Option<PublishedProjector<'f>>,
    /// True with an importance matrix.
    pub imatrix: bool,
}

/// Checks that a template parses.
///
/// # Errors
/// Line and description of the fault.
pub(crate) fn check(template: &str) -> Result<(), String> {
    environment(template).map(|_| ())
}

fn environment(template: &str) -> Result<Environment<'_>, String> {
    let mut environment = Environment::new();
    environment.set_unknown_method_callback(minijinja_contrib::pycompat::unknown_method_callback);
    environment.add_filter("text", |text: &str| markdown(text));
    environment.add_filter("shell", |text: &str| shell(text));
    environment.add_filter("link", |text: &str| link(text));
    environment
        .add_template("card", template)
        .map_err(|error| described(&error))?;
    Ok(environment)
}

fn described(error: &minijinja::Error) -> String {
    let what = error
        .detail()
        .map_or_else(|| error.kind().to_string(), str::to_owned);
    error
        .line()
        .map_or_else(|| what.clone(), |line| format!("line {line}: {what}"))
}

/// Renders the card.
///
/// # Errors
/// A template that fails: line and description of the fault.
pub(crate) fn card(
    template: &str,
    data: &Frontier,
    contents: &Contents<'_>,
    facts: &Facts,
) -> Result<String, String> {
    let environment = environment(template)?;
    let card = environment
        .get_template("card")
        .and_then(|card| card.render(values(data, contents, facts)));
    let mut card = card.map_err(|error| described(&error))?;
    card.truncate(card.trim_end().len());
    card.push('\n');
    Ok(card)
}

fn values(data: &Frontier, contents: &Contents<'_>, facts: &Facts) -> Value {
    let files = &contents.files;
    let relative = data.scoring.score == Score::WeightedError;
    let measured = || files.iter().filter_map(|f| f.file.measured.as_ref());
    let distance = data.distance.terms();
    context! {
        front_matter => front_matter(facts),
        name => clean(&data.model.name),
        base_model => facts.base_model,
        license => facts.license.as_ref().map(|license| license.name.clone().unwrap_or_else(|| license.id.clone())),
        quantized_by => facts.quantized_by,
        repo => facts.repo,
        languages => facts.languages,
        tags => facts.tags,
        architecture => clean(&data.model.architecture),
        parameters => weights(data.model.parameters),
        base_type => type_name(&data.model.base_type),
        base_size => size(data.model.base_bytes),
        files => files.iter().map(|file| file_values(data, file, relative)).collect::<Vec<_>>(),
        embeds => facts.output != Output::Tokens,
        ranks => facts.output == Output::Scores,
        distance => context! { name => distance.name, short => distance.short },
        with_ppl => measured().any(|m| m.ppl.is_some()),
        with_kld => measured().next().is_some(),
        ppl_base => measured().find_map(|m| m.ppl_base).map(|ppl| format!("{ppl:.4}")),
        relative,
        evaluation => data.evaluation.as_ref().map(|e| context! {
            texts => names(&e.texts),
            tokens => count(e.tokens),
            context => e.context,
            tool => clean(&e.tool),
        }),
        findings => files.iter().filter_map(|published| {
            let text = data.finding(published.file)?;
            Some(context! { name => published.file.name, url => link(&published.file.name), text })
        }).collect::<Vec<_>>(),
        dominated => dominated(data),
        calibration => calibration(data),
        remarks => facts.ollama.remarks(),
        commands => data.commands.iter().map(|c| context! {
            purpose => clean(&c.purpose),
            command => c.command.lines().map(clean).collect::<Vec<_>>().join("\n"),
        }).collect::<Vec<_>>(),
        generator => clean(&data.generator),
        reference => REFERENCE,
        projector => contents.projector.as_ref().map(projector_values),
        imatrix => contents.imatrix,
    }
}

fn names(texts: &[Text]) -> String {
    texts
        .iter()
        .map(|text| clean(&text.name))
        .collect::<Vec<_>>()
        .join(", ")
}

fn projector_values(projector: &PublishedProjector<'_>) -> Value {
    let name = projector.file.name();
    context! {
        url => link(&name),
        name,
        size => size(projector.file.bytes),
        bytes => projector.file.bytes,
        reads => projector.file.reads(),
        sha256 => projector.sha256,
    }
}

/// Preset label at the end of a file name.
fn label(name: &str) -> &str {
    let stem = name.strip_suffix(".gguf").unwrap_or(name);
    stem.rsplit_once('-').map_or(stem, |(_, label)| label)
}

fn file_values(data: &Frontier, published: &Published<'_>, relative: bool) -> Value {
    let file = published.file;
    let measured = file.measured.as_ref();
    let predicted = file
        .corrected
        .unwrap_or_else(|| data.corrected(file.predicted));
    let or_dash = |value: Option<String>| value.unwrap_or_else(|| NONE.into());
    let kld = measured.map(|m| {
        let (value, error) = figure(m.mean.value(), m.uncertainty);
        error.map_or(value.clone(), |error| format!("{value} ± {error}"))
    });
    let divergence = measured
        .map(|m| m.mean.value())
        .or((!relative).then_some(predicted));
    // Their limits are in nats.
    let nats_of = divergence.filter(|_| data.distance == Distance::KlDivergence);
    let purpose = nats_of.and_then(|nats| PURPOSES.iter().find(|(most, _)| nats <= *most));
    context! {
        name => file.name,
        url => link(&file.name),
        label => markdown(label(&file.name)),
        model => model_name(&file.name),
        size => size(file.bytes),
        bytes => file.bytes,
        bpw => format!("{:.2}", file.bpw),
        ppl => or_dash(measured.and_then(|m| m.ppl).map(|ppl| format!("{ppl:.4}"))),
        kld => or_dash(kld),
        p999 => or_dash(measured.and_then(|m| m.p999).map(nats)),
        same_top => or_dash(measured.and_then(|m| m.same_top).map(percent)),
        rank => or_dash(measured.and_then(|m| m.rank_correlation).map(|rank| format!("{rank:.4}"))),
        neighbours => or_dash(measured.and_then(|m| m.shared_neighbours).map(percent)),
        predicted => or_dash((!relative).then(|| nats(predicted))),
        purpose => purpose.map_or(NONE, |(_, words)| words),
        budget => clean(&file.budget),
        sha256 => published.sha256,
        modelfile => published.modelfile,
        recipe => format!("{}.recipe.txt", file.name),
    }
}

/// Model name for Ollama: lower case, with its permitted characters only.
fn model_name(file: &str) -> String {
    let stem = file.strip_suffix(".gguf").unwrap_or(file).to_lowercase();
    let permitted = stem.chars().map(|c| {
        if c.is_ascii_alphanumeric() || "-_.".contains(c) {
            c
        } else {
            '-'
        }
    });
    let name: String = permitted.collect();
    match name.trim_matches(['-', '.', '_']) {
        "" => "model".into(),
        name => name.to_owned(),
    }
}

/// Common presets beaten by one of our files: not smaller, and farther from the original, both
/// measured.
fn dominated(data: &Frontier) -> Vec<Value> {
    let mut all = Vec::new();
    let usual = |preset: &&Preset| FileType::of_name(&preset.name).is_some_and(FileType::is_usual);
    for preset in data.presets.iter().filter(usual) {
        let Some(theirs) = preset.measured.as_ref().map(|m| m.mean.value()) else {
            continue;
        };
        let fitting = data.files.iter().filter(|file| file.bytes <= preset.bytes);
        let better = fitting
            .filter_map(|file| Some((file, file.measured.as_ref()?.mean.value())))
            .filter(|(_, kld)| *kld <= theirs);
        let Some((file, kld)) = better.min_by(|a, b| a.1.total_cmp(&b.1)) else {
            continue;
        };
        all.push(context! {
            name => clean(&preset.name),
            size => size(preset.bytes),
            kld => nats(theirs),
            label => clean(&file.label),
            url => link(&file.name),
            our_size => size(file.bytes),
            our_kld => nats(kld),
        });
    }
    all
}

/// Describes the texts behind importance matrix and sensitivities.
fn calibration(data: &Frontier) -> String {
    let scoring = &data.scoring;
    if scoring.texts.is_empty() {
        return "The importance matrix was given; types were chosen by the importance-weighted error of the weights".into();
    }
    let text = |text: &Text| {
        let what = match &*text.name {
            "built-in calibration text" => {
                "Quantier's built-in calibration text: short documents of ten domains (prose, knowledge, dialogue, \
                 instructions, mathematics, data, code, several languages and scripts), written for this purpose"
                    .into()
            }
            "built-in conversations" => "Quantier's built-in conversations, by the model's chat template: questions, tools, \
                                         edits of code, reasoning, several languages, written for this purpose"
                .into(),
            name => markdown(name),
        };
        format!("- {what} ({} tokens)", count(text.tokens))
    };
    let texts: Vec<String> = scoring.texts.iter().map(text).collect();
    format!(
        "Calibrated on\n\n{}\n\nThe importance matrix uses all of it, the sensitivities {} sequences of {} tokens ({})",
        texts.join("\n"),
        count(scoring.sequences),
        count(scoring.context),
        scoring.score.label()
    )
}

/// Escapes text for Markdown, also within tables. Underscores within words have no effect there.
fn markdown(text: &str) -> String {
    let text = clean(text);
    let mut out = String::new();
    let mut before = ' ';
    let mut rest = text.chars().peekable();
    while let Some(c) = rest.next() {
        let within =
            before.is_alphanumeric() && rest.peek().is_some_and(|next| next.is_alphanumeric());
        if "\\`*[]<>|#~&".contains(c) || (c == '_' && !within) {
            out.push('\\');
        }
        out.push(c);
        before = c;
    }
    out
}

/// Percent-encoded link to a file in the same directory.
fn link(name: &str) -> String {
    let mut out = String::new();
    for byte in name.bytes() {
        match byte.is_ascii_alphanumeric() || b"-_.~".contains(&byte) {
            true => out.push(byte as char),
            false => out += &format!("%{byte:02X}"),
        }
    }
    out
}

/// The printed template: documentation of its variables in a comment, then the template.
pub fn printed() -> Cow<'static, str> {
    Cow::Owned(format!("{{#\n{VARIABLES}#}}{TEMPLATE}"))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn names_are_escaped_in_markdown() {
        assert_eq!(markdown("a_b|c_[d](e)<f>"), "a_b\\|c\\_\\[d\\](e)\\<f\\>");
        assert_eq!(shell("a.gguf"), "a.gguf");
        assert_eq!(shell("it's a.gguf"), "'it'\\''s a.gguf'");
        assert_eq!(link("ü a#(b).gguf"), "%C3%BC%20a%23%28b%29.gguf");
        assert_eq!(
            model_name("Ü Model-4.25bpw-Q4_K_M.gguf"),
            "model-4.25bpw-q4_k_m"
        );
        assert_eq!(label("A-4.25bpw-Q4_K_M.gguf"), "Q4_K_M");
    }

    #[test]
    fn all_variables_are_documented() {
        let data = crate::report::sample::small();
        let projector = ProjectorFile {
            path: "mmproj-a-F16.gguf".into(),
            bytes: 1,
            images: true,
            audio: false,
            width: None,
        };
        let metadata = crate::format::gguf::Metadata::new();
        let facts = |output| Facts::new(&metadata, output, &Default::default(), Some(&projector));
        let of = |file| Published {
            file,
            sha256: "0".repeat(64),
            modelfile: Some("M".into()),
        };
        let contents = Contents {
            files: data.files.iter().map(of).collect(),
            projector: Some(PublishedProjector {
                file: &projector,
                sha256: "0".repeat(64),
            }),
            imatrix: true,
        };
        let of_tokens = facts(Output::Tokens);
        let values = serde_json::to_value(values(&data, &contents, &of_tokens)).unwrap();
        let explained = |name: &str| {
            VARIABLES
                .split(|c: char| !c.is_alphanumeric() && c != '_')
                .any(|word| word == name)
        };
        let mut names: Vec<&String> = values.as_object().unwrap().keys().collect();
        for part in ["projector", "distance"]
            .map(|name| &values[name])
            .into_iter()
            .chain([&values["files"][0]])
        {
            names.extend(part.as_object().unwrap().keys());
        }
        for name in names {
            assert!(
                explained(name),
                "card-variables.txt does not say what {name} is"
            );
        }
        let beaten = values["dominated"].as_array().unwrap();
        assert!(!beaten.is_empty());
        for preset in beaten {
            let name = preset["name"].as_str().unwrap();
            assert!(
                FileType::of_name(name).unwrap().is_usual(),
                "{name} is nobody's choice"
            );
        }
        assert!(check(&printed()).is_ok());
        let card = card(&printed(), &data, &contents, &of_tokens).unwrap();
        assert!(card.starts_with("---\n"), "{card}");
        for part in [
            "pipeline_tag: image-text-to-text",
            "[mmproj-a-F16.gguf](mmproj-a-F16.gguf)",
            "--mmproj mmproj-a-F16.gguf",
        ] {
            assert!(card.contains(part), "{part} is not in {card}");
        }
        assert!(!card.contains("llama-server"), "{card}");
        let card = super::card(&printed(), &data, &contents, &facts(Output::Scores)).unwrap();
        for part in [
            "pipeline_tag: text-ranking",
            "llama-server --reranking -m ",
            "/v1/rerank",
        ] {
            assert!(card.contains(part), "{part} is not in {card}");
        }
        assert!(!card.contains("ollama "), "{card}");
        assert_eq!(
            check("{{ a }").unwrap_err().split(':').next(),
            Some("line 1")
        );
    }
}
