//! A recipe as a picture: layers from left to right, matrices from top to bottom, coloured by bits per weight.

use super::data::{File, Frontier, Tensor};
use super::numbers::{nats, shorten, size, type_name};
use super::svg::{Anchor, Area, Place, Svg, text_width};

const WIDTH: f64 = 960.0;
const RIGHT: f64 = 8.0;
const HEAD: f64 = 22.0;
const ROW: f64 = 27.0;
const GAP: f64 = 1.5;
const KEY: f64 = 40.0;
/// Widest a cell gets.
const CELL_MOST: f64 = 96.0;
/// Size of the names of rows, as in the style sheet.
const ROW_SIZE: f64 = 12.0;
const ROW_CHARACTERS: usize = 20;

/// Ends of the scale of colours, bits per weight.
const SCALE: (f64, f64) = (1.5, 9.0);
/// The colours, evenly spaced: viridis (van der Walt and Smith, 2015), which is even for the colour-blind too.
const COLOURS: [[u8; 3]; 9] = [
    [0x44, 0x01, 0x54],
    [0x47, 0x2d, 0x7b],
    [0x3b, 0x52, 0x8b],
    [0x2c, 0x72, 0x8e],
    [0x21, 0x91, 0x8c],
    [0x28, 0xae, 0x80],
    [0x5e, 0xc9, 0x62],
    [0xad, 0xdc, 0x30],
    [0xfd, 0xe7, 0x25],
];

/// Colour of so many bits per weight, logarithmic, and whether text on it should be light.
fn colour(bpw: f64) -> (String, bool) {
    let part = ((bpw / SCALE.0).ln() / (SCALE.1 / SCALE.0).ln()).clamp(0.0, 1.0);
    let place = part * (COLOURS.len() - 1) as f64;
    let i = (place as usize).min(COLOURS.len() - 2);
    let mix = |c: usize| {
        let (a, b) = (f64::from(COLOURS[i][c]), f64::from(COLOURS[i + 1][c]));
        (a + (b - a) * (place - i as f64)).round()
    };
    let [r, g, b] = [mix(0), mix(1), mix(2)];
    let brightness = 0.299 * r + 0.587 * g + 0.114 * b;
    (format!("#{:02x}{:02x}{:02x}", r as u8, g as u8, b as u8), brightness < 128.0)
}

/// Rows in the order of the forward pass; others follow in the order of the file.
const ORDER: [&str; 14] = [
    "attn_q", "attn_k", "attn_v", "attn_qkv", "attn_kv_b", "attn_output", "ffn_gate", "ffn_up", "ffn_down",
    "ffn_gate_shexp", "ffn_up_shexp", "ffn_down_shexp", "ffn_gate_exps", "ffn_up_exps",
];

/// The row of a tensor: its name without layer and `.weight`, so that a layer's matrices of one role stay apart.
fn row_of(tensor: &Tensor) -> &str {
    let inner = match tensor.layer {
        Some(layer) => tensor.name.strip_prefix(&format!("blk.{layer}.")),
        None => Some(tensor.name.as_str()),
    };
    inner.map_or(&tensor.role, |name| name.strip_suffix(".weight").unwrap_or(name))
}

/// The rows of a model: those outside the layers that come first, those of the layers, those that come last.
struct Rows<'a> {
    first: Vec<&'a Tensor>,
    layered: Vec<&'a str>,
    last: Vec<&'a Tensor>,
    layers: Vec<u32>,
}

impl<'a> Rows<'a> {
    fn of(tensors: &'a [Tensor]) -> Rows<'a> {
        let mut layers: Vec<u32> = tensors.iter().filter_map(|tensor| tensor.layer).collect();
        layers.sort_unstable();
        layers.dedup();
        let mut layered: Vec<&str> = Vec::new();
        for tensor in tensors.iter().filter(|tensor| tensor.layer.is_some()) {
            let row = row_of(tensor);
            if !layered.contains(&row) {
                layered.push(row);
            }
        }
        layered.sort_by_key(|row| ORDER.iter().position(|known| known == row).unwrap_or(ORDER.len()));
        let outside = tensors.iter().filter(|tensor| tensor.layer.is_none());
        let (last, first) = outside.partition(|tensor| tensor.role == "output");
        Rows { first, layered, last, layers }
    }

    fn count(&self) -> usize {
        self.first.len() + self.layered.len() + self.last.len()
    }
}

/// What a cell shows.
struct Cell {
    bpw: f64,
    text: String,
    tip: String,
}

impl Cell {
    fn of(tensor: &Tensor, file: &File) -> Option<Cell> {
        let ggml_type = file.recipe.get(&tensor.name)?;
        let choice = tensor.choice(ggml_type)?;
        let bpw = choice.bpw(tensor.weights);
        let text = type_name(ggml_type);
        let (name, bytes) = (shorten(&tensor.name, 60), size(choice.bytes));
        let tip = format!("{name}: {text}, {bpw:.2} bpw, {bytes}, {} nats predicted", nats(choice.nats));
        Some(Cell { bpw, text, tip })
    }
}

/// The picture of one file's recipe.
pub fn heat_map(data: &Frontier, file: &File, place: Place) -> String {
    let rows = Rows::of(&data.tensors);
    let names = rows.first.iter().chain(&rows.last).map(|tensor| row_of(tensor)).chain(rows.layered.iter().copied());
    let widest = names.map(|name| shorten(name, ROW_CHARACTERS).chars().count()).max().unwrap_or(0);
    let left = (widest as f64 * ROW_SIZE * 0.61 + 14.0).max(70.0);
    let columns = rows.layers.len().max(1);
    let cell = ((WIDTH - left - RIGHT) / columns as f64).min(CELL_MOST);
    let right = left + cell * columns as f64;
    let height = HEAD + ROW * rows.count() as f64 + KEY;
    let label = format!("Types of the tensors of {}, layer by layer", shorten(&file.name, 80));
    let mut svg = Svg::new(WIDTH, height, &label, place);

    let every = (20.0 / cell).ceil().max(1.0) as usize;
    for (column, layer) in rows.layers.iter().enumerate().step_by(every) {
        let x = left + cell * (column as f64 + 0.5);
        svg.text("q-layer", (x, HEAD - 7.0), Anchor::Middle, &layer.to_string());
    }
    svg.text("q-layer", (left - 10.0, HEAD - 7.0), Anchor::End, "layer");

    let mut y = HEAD;
    let mut seen: Vec<(f64, String)> = Vec::new();
    let mut row = |svg: &mut Svg, name: &str, cells: &[(f64, f64, Option<Cell>)]| {
        svg.text("q-row", (left - 10.0, y + ROW / 2.0 + 4.0), Anchor::End, &shorten(name, ROW_CHARACTERS));
        for (x0, x1, cell) in cells {
            let area = Area { x0: x0 + GAP / 2.0, y0: y + GAP / 2.0, x1: x1 - GAP / 2.0, y1: y + ROW - GAP / 2.0 };
            let Some(cell) = cell else { continue };
            draw_cell(svg, area, cell);
            if !seen.iter().any(|(_, text)| *text == cell.text) {
                seen.push((cell.bpw, cell.text.clone()));
            }
        }
        y += ROW;
    };
    for tensor in &rows.first {
        row(&mut svg, row_of(tensor), &[(left, right, Cell::of(tensor, file))]);
    }
    for name in &rows.layered {
        let mut cells = Vec::new();
        for tensor in data.tensors.iter().filter(|tensor| row_of(tensor) == *name) {
            if let Some(column) = tensor.layer.and_then(|layer| rows.layers.binary_search(&layer).ok()) {
                let x = left + cell * column as f64;
                cells.push((x, x + cell, Cell::of(tensor, file)));
            }
        }
        row(&mut svg, name, &cells);
    }
    for tensor in &rows.last {
        row(&mut svg, row_of(tensor), &[(left, right, Cell::of(tensor, file))]);
    }
    key(&mut svg, left, y + 14.0, seen);
    svg.finish()
}

fn draw_cell(svg: &mut Svg, area: Area, cell: &Cell) {
    let (fill, dark) = colour(cell.bpw);
    svg.rect("q-cell", area, Some(&fill), &cell.tip);
    let (width, middle) = (area.x1 - area.x0, (area.x0 + area.x1) / 2.0);
    let tone = if dark { "q-on-dark" } else { "q-on-light" };
    // In one line if it fits; else in two, parted at the underscore.
    let two = cell.text.split_once('_').map_or(vec![cell.text.as_str()], |(a, b)| vec![a, b]);
    let sizes = [(11.0, "q-cell-11"), (9.5, "q-cell-9"), (8.0, "q-cell-8")];
    let fits = |lines: &[&str], size: f64| lines.iter().all(|line| text_width(line, size) <= width - 1.0);
    let one = [cell.text.as_str()];
    let choice = sizes[..2].iter().find(|(size, _)| fits(&one, *size)).map(|size| (&one[..], size));
    let choice = choice.or_else(|| sizes.iter().find(|(size, _)| fits(&two, *size)).map(|size| (&two[..], size)));
    let Some((lines, (size, class))) = choice else { return };
    let top = (area.y0 + area.y1) / 2.0 - size * (lines.len() as f64 - 1.0) / 2.0 + 0.36 * size;
    for (i, line) in lines.iter().enumerate() {
        svg.text(&format!("{class} {tone}"), (middle, top + size * i as f64), Anchor::Middle, line);
    }
}

/// The types that occur, by rising bits per weight.
fn key(svg: &mut Svg, left: f64, y: f64, mut seen: Vec<(f64, String)>) {
    seen.sort_by(|a, b| a.0.total_cmp(&b.0).then_with(|| a.1.cmp(&b.1)));
    let mut x = left;
    for (bpw, name) in seen {
        let text = format!("{name} {bpw:.2}");
        let width = 18.0 + text_width(&text, 10.5) + 12.0;
        if x + width > WIDTH {
            break;
        }
        svg.rect("q-cell", Area { x0: x, y0: y - 9.0, x1: x + 13.0, y1: y + 4.0 }, Some(&colour(bpw).0), "");
        svg.text("q-layer", (x + 18.0, y + 2.0), Anchor::Start, &text);
        x += width;
    }
}
