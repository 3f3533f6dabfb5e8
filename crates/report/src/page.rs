//! `report.html`: a self-contained page.

use super::compare::{Comparison, geometric_mean};
use super::data::{Distance, File, Frontier, Measured, Score, Text};
use super::fit_chart::fit_chart;
use super::heat_map::{colour, heat_map};
use super::numbers::{
    Unit, capital, change, clean, count, duration, figure, nats, percent, shorten, size, type_name,
    weights,
};
use super::size_chart::size_chart;
use super::svg::{COLOURS, Place, style};
use minijinja::{AutoEscape, Environment, Value, context};
use std::fmt::Write;

const TEMPLATE: &str = include_str!("page.html");
const STYLE: &str = include_str!("page.css");
/// Rows in the table of the most sensitive tensors.
const MOST_SENSITIVE: usize = 15;
/// Files in that table.
const SENSITIVITY_FILES: usize = 4;
/// Longest name on the page, in characters.
const NAME: usize = 120;
/// Placeholder for unknown numbers.
const NONE: &str = "–";

/// Renders the page.
///
/// # Panics
/// If the template is invalid, which tests exclude.
pub fn page(data: &Frontier) -> String {
    let mut environment = Environment::new();
    environment.set_auto_escape_callback(|_| AutoEscape::Html);
    environment
        .add_template("page", TEMPLATE)
        .expect("the template is tested");
    let page = environment
        .get_template("page")
        .and_then(|template| template.render(values(data)));
    page.expect("the template is tested")
}

fn values(data: &Frontier) -> Value {
    let comparisons: Vec<Option<Comparison>> = data
        .files
        .iter()
        .map(|file| data.comparison(file))
        .collect();
    let terms = data.distance.terms();
    let maps: Vec<Value> = mapped(data).map(|file| map(data, file)).collect();
    context! {
        generator => clean(&data.generator),
        title => shorten(&data.model.name, NAME),
        distance => context! {
            name => capital(terms.name),
            short => terms.short,
            noun => terms.noun,
            definition => terms.definition,
            is_cosine => data.distance == Distance::Cosine,
        },
        facts => facts(data),
        lede => lede(data, &comparisons),
        style => page_style(),
        size_text => size_text(data),
        size_chart => size_chart(data, Place::Page),
        measured => data.files.iter().any(|file| file.measured.is_some()),
        compared => comparisons.iter().any(Option::is_some),
        files => data.files.iter().zip(&comparisons).map(|(file, c)| file_row(data, file, c.as_ref())).collect::<Vec<_>>(),
        files_note => files_note(data),
        findings => findings(data),
        presets => presets(data),
        presets_note => presets_note(data),
        maps,
        key => key(data),
        experts => data.model.experts.is_some(),
        fit_chart => fit_chart(data, Place::Page),
        fit_text => fit_text(data),
        commands => commands(data),
        settings => settings(data),
        stages => stages(data),
        ..gains(data)
    }
}

/// Colours of both themes, then the rules for charts and page.
fn page_style() -> String {
    let (mut light, mut dark) = (String::new(), String::new());
    for (name, on_light, on_dark) in COLOURS {
        let _ = write!(light, " --{name}: {on_light};");
        let _ = write!(dark, " --{name}: {on_dark};");
    }
    format!(
        ":root {{ color-scheme: light dark;{light} }}\n@media (prefers-color-scheme: dark) {{ :root {{{dark} }} }}\n{STYLE}{}",
        style(Place::Page)
    )
}

fn facts(data: &Frontier) -> Vec<String> {
    let model = &data.model;
    let mut facts = vec![
        shorten(&model.architecture, 30),
        format!("{} weights", weights(model.parameters)),
        format!("{} layers", model.layers),
    ];
    facts.extend(
        model
            .experts
            .map(|experts| format!("{experts} experts per layer")),
    );
    facts.push(format!(
        "{} original: {}",
        type_name(&model.base_type),
        size(model.base_bytes)
    ));
    facts
}

/// The one-sentence summary; none without comparisons.
fn lede(data: &Frontier, comparisons: &[Option<Comparison>]) -> Option<Value> {
    let counted: Vec<&Comparison> = comparisons.iter().flatten().collect();
    let mean = geometric_mean(counted.iter().map(|c| c.ratio()))?;
    let have = match counted.len() {
        1 => "the file has ",
        _ => "the files have ",
    };
    let before = match counted.as_slice() {
        [only] if only.next.is_none() => {
            format!(
                "At the size of llama.cpp’s {} preset, {have}",
                shorten(&only.preset.name, 24)
            )
        }
        _ => format!("At the sizes of llama.cpp’s presets, {have}"),
    };
    let terms = data.distance.terms();
    let whose = if counted.len() == 1 { "its" } else { "their" };
    let of_what = format!("{whose} {}", terms.name);
    let unit = terms.counted;
    let how = match (counted.len(), &data.evaluation) {
        (1, Some(evaluation)) => format!(", measured on {} {unit}", count(evaluation.tokens)),
        (1, None) => String::new(),
        (n, Some(evaluation)) => {
            format!(
                " (geometric mean of {n} comparisons, measured on {} {unit})",
                count(evaluation.tokens)
            )
        }
        (n, None) => format!(" (geometric mean of {n} comparisons)"),
    };
    Some(
        context! { before, figure => format!("{mean:.2} times"), after => format!(" {of_what}{how}.") },
    )
}

fn size_text(data: &Frontier) -> String {
    let mut text = format!(
        "The curve is the predicted frontier: the recipes with the least {} from the original model at every size. \
         Lower is better.",
        data.distance.terms().name
    );
    if !data.presets.is_empty() {
        text += " Dotted lines connect llama.cpp’s presets to the frontier at the same size.";
    }
    if data.scoring.score == Score::WeightedError {
        text += " Predictions are importance-weighted errors of the weights, in relative units until they are fitted to \
                 measurements.";
    }
    if data.evaluation.is_none() {
        text += " Nothing has been measured yet: all figures are predictions.";
    }
    text
}

fn or_dash(value: Option<f64>, show: fn(f64) -> String) -> String {
    value.map_or(NONE.into(), show)
}

/// Mean divergence and standard error.
fn kld(measured: Option<&Measured>) -> (String, Option<String>) {
    measured.map_or((NONE.into(), None), |m| {
        figure(m.mean.value(), m.uncertainty)
    })
}

fn file_row(data: &Frontier, file: &File, comparison: Option<&Comparison>) -> Value {
    let measured = file.measured.as_ref();
    let ratio = measured.and_then(|m| Some(m.ppl? / m.ppl_base?));
    context! {
        name => shorten(&file.name, NAME),
        budget => shorten(&file.budget, 80),
        size => size(file.bytes),
        bpw => format!("{:.2}", file.bpw),
        predicted => nats(file.corrected.unwrap_or_else(|| data.corrected(file.predicted))),
        kld => kld(measured).0,
        kld_error => kld(measured).1,
        p999 => or_dash(measured.and_then(|m| m.p999), nats),
        same_top => or_dash(measured.and_then(|m| m.same_top), percent),
        ratio => or_dash(ratio, |ratio| format!("{ratio:.4}")),
        rank => or_dash(measured.and_then(|m| m.rank_correlation), |rank| format!("{rank:.4}")),
        neighbours => or_dash(measured.and_then(|m| m.shared_neighbours), percent),
        against => comparison.map(|comparison| against(comparison, data.distance)),
    }
}

fn against(comparison: &Comparison, distance: Distance) -> Value {
    let (saved, verb) = (
        comparison.saved(),
        if comparison.saved() < 0.0 {
            "lost"
        } else {
            "saved"
        },
    );
    context! {
        class => if saved < 0.0 { "worse" } else { "better" },
        change => change(comparison.ratio() - 1.0),
        presets => preset_names(comparison),
        saved => format!("{}{} {verb}", nats(saved.abs()), distance.terms().unit),
    }
}

/// `Q4_K_M`, or `Q4_K_M … Q5_K_S`.
pub(super) fn preset_names(comparison: &Comparison) -> String {
    let names = [Some(comparison.preset), comparison.next];
    let names: Vec<String> = names
        .into_iter()
        .flatten()
        .map(|preset| shorten(&preset.name, 20))
        .collect();
    names.join(" … ")
}

/// Name and finding of each measured file.
fn findings(data: &Frontier) -> Vec<Value> {
    let finding = |file: &File| {
        let text = data.finding(file)?;
        Some(context! { name => shorten(&file.name, NAME), text })
    };
    data.files.iter().filter_map(finding).collect()
}

fn files_note(data: &Frontier) -> String {
    let mut note = String::from(data.distance.terms().note);
    if data.distance == Distance::Cosine {
        note += " The rank correlation is that of the similarities of all pairs of texts; neighbours are the share of \
                 each text’s ten nearest that are the same in both models.";
    }
    if data.fit.is_some() {
        note += " Predictions are fitted to the measurements.";
    }
    if data.presets.iter().any(|preset| preset.measured.is_some()) {
        note += " A file is compared with the preset of its size (at most 1% larger than the file) or, if there is none, \
                 with the straight line between its two neighbours in the chart above, all measured on the same text.";
    }
    note
}

/// Reliability of the presets' predictions; empty if there are none.
fn presets_note(data: &Frontier) -> String {
    let measured = data
        .presets
        .iter()
        .filter(|preset| preset.measured.is_some());
    match (data.preset_fit, measured.count()) {
        (Some(fit), measured) => {
            let presets = if measured == 1 { "preset" } else { "presets" };
            let error = fit.median_error.filter(|_| fit.points > 1);
            let error = error.map_or(String::new(), |error| {
                format!("; half of them are within {} of that", percent(error))
            });
            format!(
                "{} measured {presets} had {:.2} times the predicted divergence{error}. Predictions of the others include \
                 this factor.",
                fit.points, fit.scale
            )
        }
        (None, 0) => {
            "No preset was measured. Their predictions can be off by a factor of two.".into()
        }
        (None, _) => String::new(),
    }
}

fn presets(data: &Frontier) -> Vec<Value> {
    let row = |preset: &super::data::Preset| {
        let measured = preset.measured.as_ref();
        context! {
            name => shorten(&preset.name, 40),
            size => size(preset.bytes),
            bpw => format!("{:.2}", preset.bpw),
            predicted => or_dash(data.predicted(preset), nats),
            kld => kld(measured).0,
            kld_error => kld(measured).1,
            p999 => or_dash(measured.and_then(|m| m.p999), nats),
            same_top => or_dash(measured.and_then(|m| m.same_top), percent),
            rank => or_dash(measured.and_then(|m| m.rank_correlation), |rank| format!("{rank:.4}")),
            neighbours => or_dash(measured.and_then(|m| m.shared_neighbours), percent),
            frontier => or_dash(data.nats_at(preset.bytes).map(|p| data.corrected(p)), nats),
        }
    };
    data.presets.iter().map(row).collect()
}

/// Files with a heat map.
fn mapped(data: &Frontier) -> impl Iterator<Item = &File> {
    data.files
        .iter()
        .filter(|file| !file.recipe.is_empty() && !data.tensors.is_empty())
}

fn map(data: &Frontier, file: &File) -> Value {
    let title = format!("{:.2} bpw · {}", file.bpw, size(file.bytes));
    let (svg, width) = heat_map(data, file, Place::Page);
    context! { name => shorten(&file.name, NAME), title, svg, width => format!("{width:.0}") }
}

/// Legend of the heat maps: the types in use, by bits per weight.
fn key(data: &Frontier) -> Vec<Value> {
    let mut seen: Vec<(f64, String)> = Vec::new();
    for (file, tensor) in
        mapped(data).flat_map(|file| data.tensors.iter().map(move |tensor| (file, tensor)))
    {
        let Some(choice) = file
            .recipe
            .get(&tensor.name)
            .and_then(|name| tensor.choice(name))
        else {
            continue;
        };
        let name = type_name(&choice.ggml_type);
        if !seen.iter().any(|(_, listed)| *listed == name) {
            seen.push((choice.bpw(tensor.weights), name));
        }
    }
    seen.sort_by(|a, b| a.0.total_cmp(&b.0).then_with(|| a.1.cmp(&b.1)));
    let item = |(bpw, name): &(f64, String)| context! { name, bpw => format!("{bpw:.2}"), colour => colour(*bpw).0 };
    seen.iter().map(item).collect()
}

fn fit_text(data: &Frontier) -> Vec<String> {
    let mut text = Vec::new();
    match data.fit {
        Some(fit) => {
            let files = if fit.points == 1 { "file" } else { "files" };
            text.push(format!(
                "Fitted to {} {files}: measured = {:.3} × predicted to the power {:.3}.",
                fit.points, fit.scale, fit.exponent
            ));
            let rank = fit
                .rank_correlation
                .map(|r| format!("The rank correlation is {r:.3}."));
            let error = fit.median_error.map(|e| {
                format!(
                    "Half of the fitted predictions are within {} of the measurement.",
                    percent(e)
                )
            });
            text.extend([rank, error].into_iter().flatten());
        }
        None => text.push("No fit: too few files were measured.".into()),
    }
    text.push(
        "Points on the dashed line were predicted exactly. Predictions are sums of the sensitivities of single tensors, \
         computed on other text than the measurements."
            .into(),
    );
    text
}

/// The most sensitive tensors, as the `gain*` values of the template.
fn gains(data: &Frontier) -> Value {
    let all = data.gains();
    let unit = Unit::of(data.model.base_bytes);
    let rate = |nats_per_byte: f64| nats(nats_per_byte * unit.bytes());
    let (Some(first), Some(median)) = (all.first(), all.get(all.len() / 2)) else {
        return context! {};
    };
    let shown = spread(&data.files, SENSITIVITY_FILES);
    let row = |gain: &super::compare::Gain| {
        let tensor = gain.tensor;
        let (few, more) = (gain.few, gain.more);
        let types = shown.iter().map(|file| {
            file.recipe
                .get(&tensor.name)
                .map_or(NONE.into(), |t| type_name(t))
        });
        context! {
            name => shorten(tensor.name.strip_suffix(".weight").unwrap_or(&tensor.name), 60),
            weights => weights(tensor.weights),
            nats => format!("{} → {}", nats(few.nats), nats(more.nats)),
            change => format!("{} → {}", type_name(&few.ggml_type), type_name(&more.ggml_type)),
            added => size(more.bytes - few.bytes),
            rate => rate(gain.nats_per_byte),
            bar => format!("{:.1}", (100.0 * gain.nats_per_byte / first.nats_per_byte).clamp(0.0, 100.0)),
            types => types.collect::<Vec<String>>(),
        }
    };
    let text = format!(
        "{} saved per added byte if a tensor gets about 5.5 instead of about 3.4 bits per weight, with all others at \
         full precision: the {} most sensitive of {} tensors. The median tensor saves {} per {}.",
        capital(data.distance.terms().noun),
        all.len().min(MOST_SENSITIVE),
        all.len(),
        rate(median.nats_per_byte),
        unit.name()
    );
    context! {
        gains => all.iter().take(MOST_SENSITIVE).map(row).collect::<Vec<Value>>(),
        gain_text => text,
        gain_unit => unit.name(),
        gain_files => shown.iter().map(|file| shorten(&file.label, 14)).collect::<Vec<String>>(),
    }
}

/// At most `most` files, evenly spaced from first to last.
fn spread(files: &[File], most: usize) -> Vec<&File> {
    match files.len() <= most {
        true => files.iter().collect(),
        false => (0..most)
            .map(|i| &files[i * (files.len() - 1) / (most - 1)])
            .collect(),
    }
}

fn commands(data: &Frontier) -> Vec<Value> {
    let lines = |text: &str| text.lines().map(clean).collect::<Vec<String>>().join("\n");
    let command = |c: &super::data::Command| context! { purpose => clean(&c.purpose), command => lines(&c.command) };
    data.commands.iter().map(command).collect()
}

fn settings(data: &Frontier) -> Vec<Value> {
    let texts = |texts: &[Text]| {
        let described = |text: &Text| {
            format!(
                "{} ({} tokens)",
                shorten(&text.name, 60),
                count(text.tokens)
            )
        };
        texts
            .iter()
            .map(described)
            .collect::<Vec<String>>()
            .join(", ")
    };
    let scoring = &data.scoring;
    let draws = if scoring.draws == 1 {
        "label draw"
    } else {
        "label draws"
    };
    let mut all = vec![
        ("calibration text", texts(&scoring.texts)),
        (
            "sequences",
            format!(
                "{} of {} tokens, {} {draws} each, seed {}",
                count(scoring.sequences),
                count(scoring.context),
                scoring.draws,
                scoring.seed
            ),
        ),
        ("sensitivity", scoring.score.label().into()),
        (
            "candidate types",
            data.types
                .iter()
                .map(|t| type_name(t))
                .collect::<Vec<String>>()
                .join(", "),
        ),
    ];
    if let Some(evaluation) = &data.evaluation {
        let how = format!(
            "; {} tokens scored, in chunks of {}, by {}",
            count(evaluation.tokens),
            count(evaluation.context),
            shorten(&evaluation.tool, 40)
        );
        all.push(("evaluation text", texts(&evaluation.texts) + &how));
    }
    let own = all
        .into_iter()
        .map(|(name, value)| context! { name, value });
    let given = data
        .settings
        .iter()
        .map(|s| context! { name => shorten(&s.name, 60), value => clean(&s.value) });
    own.chain(given).collect()
}

fn stages(data: &Frontier) -> Vec<Value> {
    let stage = |stage: &super::data::Stage| {
        context! {
            name => shorten(&stage.name, 60),
            time => duration(stage.seconds),
            memory => stage.peak_bytes.map_or(NONE.into(), size),
        }
    };
    data.stages.iter().map(stage).collect()
}
