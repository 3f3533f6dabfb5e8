//! Python pickles, as far as checkpoints use them: data without code.
//!
//! A pickle is a program for a machine with a stack and a memo. It can call any function of any
//! module, so Python's own reader runs arbitrary code. This reader supports only the opcodes that
//! `torch.save` writes: a call becomes an [`Object::Call`] with the function it names, and only
//! functions of a given list are accepted.
//!
//! There is no recursion, and every opcode adds at most one value or object, so depth and memory
//! are bounded by the number of bytes.

use crate::shown;
use std::collections::HashMap;

/// Longest accepted pickle in bytes: enough for two hundred thousand tensors.
const MAX_LEN: usize = 100_000_000;
/// The dictionary that keeps insertion order, as every dictionary does here.
const ORDERED_DICT: [&str; 2] = ["collections", "OrderedDict"];

/// A value. Strings borrow from the pickle; composite values are objects.
#[derive(Clone, Copy, Debug, PartialEq)]
pub(crate) enum Value<'a> {
    None,
    Bool,
    Int(i64),
    Float,
    Text(&'a str),
    /// A function or class, as an index into the list given to the reader.
    Global(usize),
    /// `collections.OrderedDict` before it is called.
    OrderedDict,
    /// An object, as an index.
    Object(usize),
}

/// A composite value.
#[derive(Debug, PartialEq)]
pub(crate) enum Object<'a> {
    Tuple(Vec<Value<'a>>),
    List(Vec<Value<'a>>),
    /// Keys and values in the order of their insertion; keys may repeat.
    Dict(Vec<(Value<'a>, Value<'a>)>),
    /// A function of the list, and its arguments as a tuple.
    Call {
        function: usize,
        arguments: usize,
    },
    /// A reference to data outside the pickle, by its id.
    Persistent(Value<'a>),
}

/// A whole pickle.
#[derive(Debug)]
pub(crate) struct Pickle<'a> {
    /// The outermost value.
    pub(crate) root: Value<'a>,
    objects: Vec<Object<'a>>,
}

impl<'a> Pickle<'a> {
    /// The object of a value, if it refers to one.
    pub(crate) fn object(&self, value: Value<'a>) -> Option<&Object<'a>> {
        match value {
            Value::Object(index) => self.objects.get(index),
            _ => None,
        }
    }

    /// The elements of a tuple.
    pub(crate) fn tuple(&self, value: Value<'a>) -> Option<&[Value<'a>]> {
        match self.object(value)? {
            Object::Tuple(elements) => Some(elements),
            _ => None,
        }
    }

    /// Kind of a value, for messages.
    pub(crate) fn kind(&self, value: Value<'a>) -> &'static str {
        match (value, self.object(value)) {
            (_, Some(Object::Tuple(_) | Object::List(_))) => "a list",
            (_, Some(Object::Dict(_))) => "a dictionary",
            (_, Some(_)) => "an object",
            (Value::None, _) => "None",
            (Value::Bool, _) => "a boolean",
            (Value::Int(_) | Value::Float, _) => "a number",
            (Value::Text(_), _) => "a text",
            _ => "a name",
        }
    }
}

/// Reads a pickle that may use these globals, each a module and a name.
///
/// # Errors
/// A damaged pickle, an opcode that `torch.save` does not write, an unlisted global; with the
/// position in the pickle.
pub(crate) fn read<'a>(bytes: &'a [u8], globals: &[[&str; 2]]) -> Result<Pickle<'a>, String> {
    if bytes.len() > MAX_LEN {
        return Err(format!(
            "its pickle has {} bytes; the limit is {MAX_LEN}",
            bytes.len()
        ));
    }
    let mut machine = Machine {
        bytes,
        at: 0,
        stack: Vec::new(),
        marks: Vec::new(),
        memo: HashMap::new(),
        objects: Vec::new(),
    };
    loop {
        let at = machine.at;
        match machine.step(globals) {
            Ok(None) => {}
            Ok(Some(root)) => {
                let objects = machine.objects;
                return Ok(Pickle { root, objects });
            }
            Err(what) => return Err(format!("its pickle, byte {at}: {what}")),
        }
    }
}

struct Machine<'a> {
    bytes: &'a [u8],
    at: usize,
    stack: Vec<Value<'a>>,
    /// Stack heights at the open marks.
    marks: Vec<usize>,
    memo: HashMap<u32, Value<'a>>,
    objects: Vec<Object<'a>>,
}

impl<'a> Machine<'a> {
    /// Runs one opcode; STOP gives the result.
    fn step(&mut self, globals: &[[&str; 2]]) -> Result<Option<Value<'a>>, String> {
        let [opcode] = self.array()?;
        match opcode {
            // PROTO: torch.save writes 2. Opcodes of later protocols are refused below.
            0x80 => drop(self.array::<1>()?),
            b'N' => self.stack.push(Value::None),
            0x88 | 0x89 => self.stack.push(Value::Bool),
            b'K' => {
                let [n] = self.array()?;
                self.stack.push(Value::Int(n.into()));
            }
            b'M' => {
                let n = u16::from_le_bytes(self.array()?);
                self.stack.push(Value::Int(n.into()));
            }
            b'J' => {
                let n = i32::from_le_bytes(self.array()?);
                self.stack.push(Value::Int(n.into()));
            }
            0x8a => {
                let n = self.long()?;
                self.stack.push(Value::Int(n));
            }
            b'G' => {
                self.array::<8>()?;
                self.stack.push(Value::Float);
            }
            b'X' => {
                let len = u32::from_le_bytes(self.array()?);
                let text = self.text(len as usize)?;
                self.stack.push(Value::Text(text));
            }
            // SHORT_BINSTRING: written by Python 2.
            b'U' => {
                let [len] = self.array()?;
                let text = self.text(len.into())?;
                self.stack.push(Value::Text(text));
            }
            b'c' => {
                let global = self.global(globals)?;
                self.stack.push(global);
            }
            b')' => self.make(Object::Tuple(Vec::new())),
            0x85..=0x87 => {
                let len = usize::from(opcode - 0x84);
                let floor = self.floor();
                let start = self.stack.len().checked_sub(len).filter(|n| *n >= floor);
                let elements = self.stack.split_off(start.ok_or(EMPTY)?);
                self.make(Object::Tuple(elements));
            }
            b't' => {
                let elements = self.marked()?;
                self.make(Object::Tuple(elements));
            }
            b']' => self.make(Object::List(Vec::new())),
            b'}' => self.make(Object::Dict(Vec::new())),
            b'(' => self.marks.push(self.stack.len()),
            b'a' => {
                let element = self.pop()?;
                self.list()?.push(element);
            }
            b'e' => {
                let elements = self.marked()?;
                self.list()?.extend(elements);
            }
            b's' => {
                let (value, key) = (self.pop()?, self.pop()?);
                self.dict("items of")?.push((key, value));
            }
            b'u' => {
                let elements = self.marked()?;
                let (pairs, []) = elements.as_chunks::<2>() else {
                    return Err("a key has no value".into());
                };
                let dict = self.dict("items of")?;
                dict.extend(pairs.iter().map(|[key, value]| (*key, *value)));
            }
            // BUILD: attributes of a state dictionary, such as its version. They hold no weights.
            b'b' => {
                self.pop()?;
                self.dict("attributes of")?;
            }
            b'R' => self.call()?,
            b'Q' => {
                let id = self.pop()?;
                self.make(Object::Persistent(id));
            }
            b'q' => {
                let [key] = self.array()?;
                self.put(key.into())?;
            }
            b'r' => {
                let key = u32::from_le_bytes(self.array()?);
                self.put(key)?;
            }
            b'h' => {
                let [key] = self.array()?;
                self.get(key.into())?;
            }
            b'j' => {
                let key = u32::from_le_bytes(self.array()?);
                self.get(key)?;
            }
            b'.' if self.marks.is_empty() => return self.pop().map(Some),
            b'.' => return Err("it ends inside a list".into()),
            other => return Err(unknown(other)),
        }
        Ok(None)
    }

    fn take(&mut self, len: usize) -> Result<&'a [u8], String> {
        let rest = &self.bytes[self.at..];
        let taken = rest
            .get(..len)
            .ok_or("it ends here, in the middle; download the file again")?;
        self.at += len;
        Ok(taken)
    }

    fn array<const N: usize>(&mut self) -> Result<[u8; N], String> {
        let mut array = [0; N];
        array.copy_from_slice(self.take(N)?);
        Ok(array)
    }

    fn text(&mut self, len: usize) -> Result<&'a str, String> {
        std::str::from_utf8(self.take(len)?).map_err(|_| "a text is not UTF-8".into())
    }

    /// Text up to the end of its line.
    fn line(&mut self) -> Result<&'a str, String> {
        let len = self.bytes[self.at..].iter().position(|byte| *byte == b'\n');
        let line = self.text(len.ok_or("a name does not end")?)?;
        self.at += 1;
        Ok(line)
    }

    /// A little-endian number of any length.
    fn long(&mut self) -> Result<i64, String> {
        let [len] = self.array()?;
        let bytes = self.take(len.into())?;
        let negative = bytes.last().is_some_and(|byte| byte & 0x80 != 0);
        let mut number = [if negative { 0xff } else { 0 }; 8];
        number
            .get_mut(..bytes.len())
            .ok_or("a number has more than 64 bits")?
            .copy_from_slice(bytes);
        Ok(i64::from_le_bytes(number))
    }

    fn global(&mut self, globals: &[[&str; 2]]) -> Result<Value<'a>, String> {
        let name = [self.line()?, self.line()?];
        if name == ORDERED_DICT {
            return Ok(Value::OrderedDict);
        }
        let index = globals.iter().position(|global| *global == name);
        index.map(Value::Global).ok_or_else(|| {
            let [module, name] = name;
            format!(
                "it refers to {}, which weights do not need; nothing of it was run. Save the weights alone, \
                 torch.save(model.state_dict(), FILE), or look for safetensors of the model",
                shown(&format!("{module}.{name}"))
            )
        })
    }

    /// Stack height at the innermost mark.
    fn floor(&self) -> usize {
        self.marks.last().copied().unwrap_or(0)
    }

    fn pop(&mut self) -> Result<Value<'a>, String> {
        match self.stack.len() > self.floor() {
            true => self.stack.pop().ok_or_else(|| EMPTY.into()),
            false => Err(EMPTY.into()),
        }
    }

    /// Takes the values above the last mark.
    fn marked(&mut self) -> Result<Vec<Value<'a>>, String> {
        let start = self.marks.pop().ok_or("there is no mark")?;
        Ok(self.stack.split_off(start))
    }

    fn make(&mut self, object: Object<'a>) {
        self.stack.push(Value::Object(self.objects.len()));
        self.objects.push(object);
    }

    /// The object on top of the stack, without popping it.
    fn top(&mut self) -> Result<&mut Object<'a>, String> {
        let top = match self.stack.len() > self.floor() {
            true => self.stack.last(),
            false => None,
        };
        match top {
            Some(Value::Object(index)) => Ok(&mut self.objects[*index]),
            _ => Err("an object is expected on its stack".into()),
        }
    }

    fn list(&mut self) -> Result<&mut Vec<Value<'a>>, String> {
        match self.top()? {
            Object::List(list) => Ok(list),
            _ => Err("it appends to something that is not a list".into()),
        }
    }

    fn dict(&mut self, what: &str) -> Result<&mut Vec<(Value<'a>, Value<'a>)>, String> {
        match self.top()? {
            Object::Dict(dict) => Ok(dict),
            _ => Err(format!("it sets {what} something that is not a dictionary")),
        }
    }

    fn call(&mut self) -> Result<(), String> {
        let (arguments, function) = (self.pop()?, self.pop()?);
        let arguments = match arguments {
            Value::Object(index) if matches!(self.objects[index], Object::Tuple(_)) => index,
            _ => return Err("the arguments of a call are not a tuple".into()),
        };
        match function {
            Value::Global(function) => self.make(Object::Call {
                function,
                arguments,
            }),
            Value::OrderedDict => match &self.objects[arguments] {
                Object::Tuple(elements) if elements.is_empty() => {
                    self.make(Object::Dict(Vec::new()));
                }
                _ => return Err("an OrderedDict is created with arguments".into()),
            },
            _ => return Err("it calls something that is not a function".into()),
        }
        Ok(())
    }

    fn put(&mut self, key: u32) -> Result<(), String> {
        let value = self.pop()?;
        self.stack.push(value);
        self.memo.insert(key, value);
        Ok(())
    }

    fn get(&mut self, key: u32) -> Result<(), String> {
        let value = self.memo.get(&key);
        self.stack
            .push(*value.ok_or_else(|| format!("its memo has no entry {key}"))?);
        Ok(())
    }
}

const EMPTY: &str = "its stack is empty";

/// The refusal of an opcode.
fn unknown(opcode: u8) -> String {
    /// Opcodes of Python that weights do not need, by their names in pickletools.
    const NAMES: [(u8, &str); 35] = [
        (b'0', "POP"),
        (b'1', "POP_MARK"),
        (b'2', "DUP"),
        (b'B', "BINBYTES"),
        (b'C', "SHORT_BINBYTES"),
        (b'F', "FLOAT"),
        (b'I', "INT"),
        (b'L', "LONG"),
        (b'P', "PERSID"),
        (b'S', "STRING"),
        (b'T', "BINSTRING"),
        (b'V', "UNICODE"),
        (b'd', "DICT"),
        (b'g', "GET"),
        (b'i', "INST"),
        (b'l', "LIST"),
        (b'o', "OBJ"),
        (b'p', "PUT"),
        (0x81, "NEWOBJ"),
        (0x82, "EXT1"),
        (0x83, "EXT2"),
        (0x84, "EXT4"),
        (0x8b, "LONG4"),
        (0x8c, "SHORT_BINUNICODE"),
        (0x8d, "BINUNICODE8"),
        (0x8e, "BINBYTES8"),
        (0x8f, "EMPTY_SET"),
        (0x90, "ADDITEMS"),
        (0x91, "FROZENSET"),
        (0x92, "NEWOBJ_EX"),
        (0x93, "STACK_GLOBAL"),
        (0x94, "MEMOIZE"),
        (0x95, "FRAME"),
        (0x96, "BYTEARRAY8"),
        (0x97, "NEXT_BUFFER"),
    ];
    match NAMES.iter().find(|(code, _)| *code == opcode) {
        Some((_, name)) => format!(
            "torch.save writes no opcode {name} by default; load the file with torch and save it again"
        ),
        None => format!("{opcode:#04x} is not an opcode; the file is damaged"),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const GLOBALS: [[&str; 2]; 1] = [["torch", "f"]];

    fn read_all(bytes: &[u8]) -> Result<Pickle<'_>, String> {
        read(bytes, &GLOBALS)
    }

    #[test]
    fn values_match_python() {
        for (bytes, value) in [
            (&b"\x80\x02N."[..], Value::None),
            (b"\x88.", Value::Bool),
            (b"K\xff.", Value::Int(255)),
            (b"M\x01\x02.", Value::Int(513)),
            (b"J\xfe\xff\xff\xff.", Value::Int(-2)),
            (b"\x8a\x00.", Value::Int(0)),
            (b"\x8a\x01\x80.", Value::Int(-128)),
            (b"\x8a\x05\0\0\0\0\x01.", Value::Int(1 << 32)),
            (b"X\x02\0\0\0\xc3\xa4.", Value::Text("\u{e4}")),
            (b"ctorch\nf\n.", Value::Global(0)),
            (b"K\x01q\x05K\x02h\x05.", Value::Int(1)),
            (b"K\x01r\x05\x01\0\0K\x02j\x05\x01\0\0.", Value::Int(1)),
        ] {
            assert_eq!(read_all(bytes).unwrap().root, value, "{bytes:?}");
        }
    }

    #[test]
    fn composite_objects_are_built() {
        let pickle = read_all(b"}(X\x01\0\0\0aK\x01K\x02\x86X\x01\0\0\0b](K\x03eu.").unwrap();
        let Some(Object::Dict(items)) = pickle.object(pickle.root) else {
            panic!("{pickle:?}");
        };
        assert_eq!(items[0].0, Value::Text("a"));
        assert_eq!(
            pickle.tuple(items[0].1),
            Some(&[Value::Int(1), Value::Int(2)][..])
        );
        assert_eq!(pickle.kind(items[1].1), "a list");
        let pickle = read_all(b"ccollections\nOrderedDict\n)R(K\x01K\x02u}(X\x01\0\0\0vK\x01ub.");
        let pickle = pickle.unwrap();
        assert_eq!(
            pickle.object(pickle.root),
            Some(&Object::Dict(vec![(Value::Int(1), Value::Int(2))]))
        );
        let pickle = read_all(b"ctorch\nf\nK\x07\x85R.").unwrap();
        assert_eq!(
            pickle.object(pickle.root),
            Some(&Object::Call {
                function: 0,
                arguments: 0
            })
        );
    }

    #[test]
    fn code_is_refused_by_name() {
        for (bytes, part) in [
            (
                &b"cos\nsystem\nX\x02\0\0\0ls\x85R."[..],
                "byte 0: it refers to 'os.system'",
            ),
            (
                b"\x80\x02cbuiltins\neval\n.",
                "byte 2: it refers to 'builtins.eval'",
            ),
            (b"(iposix\nsystem\n.", "INST"),
            (b"X\x02\0\0\0osX\x06\0\0\0system\x93.", "STACK_GLOBAL"),
            (b"\x82\x01.", "EXT1"),
            (b"ctorch\nf\n)\x81.", "NEWOBJ"),
            (b"K\x01)R.", "not a function"),
            (b"ctorch\nf\nK\x01R.", "not a tuple"),
            (
                b"ctorch\nf\n)R}b.",
                "attributes of something that is not a dictionary",
            ),
            (b"\xfe", "0xfe is not an opcode"),
        ] {
            let error = read_all(bytes).unwrap_err();
            assert!(error.contains(part), "{error} | {part}");
        }
    }

    #[test]
    fn damaged_pickles_are_refused() {
        for bytes in [
            &b""[..],
            b".",
            b"N",
            b"K",
            b"X\xff\xff\xff\xffa.",
            b"\x85.",
            b"(\x85.",
            b"t.",
            b"e.",
            b"](.",
            b"(K\x01u.",
            b"}(K\x01u.",
            b"K\x01a.",
            b"}K\x01s.",
            b"h\x01.",
            b"q\x01.",
            b"(q\x01.",
            b"]K\x01(a.",
            b"cos",
            b"cos\nsystem",
            b"\x8a\x09\0\0\0\0\0\0\0\0\0.",
            b"X\x01\0\0\0\xff.",
            b"R.",
            b"](K\x01K\x02u.",
            b"Q.",
            b"b.",
            b"(](e.",
        ] {
            let error = read_all(bytes).unwrap_err();
            assert!(error.contains("its pickle, byte"), "{bytes:?}: {error}");
        }
    }

    #[test]
    fn nesting_uses_no_stack() {
        let mut deep = b"N".to_vec();
        deep.resize(1_000_000, 0x85);
        deep.push(b'.');
        assert!(matches!(read_all(&deep).unwrap().root, Value::Object(_)));
        let mut lists = vec![b']'; 500_000];
        lists.resize(999_999, b'a');
        lists.push(b'.');
        assert!(read_all(&lists).is_ok());
    }
}
