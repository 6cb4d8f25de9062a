//! Builds small GGUF files, sound or not, for tests.

/// A file under construction. Everything is written as given; nothing is checked.
#[derive(Clone, Debug)]
pub(crate) struct Builder {
    version: u32,
    alignment: usize,
    entries: Vec<Vec<u8>>,
    tensors: Vec<(String, Vec<u64>, u32, u64)>,
    data: Vec<u8>,
}

pub(crate) fn text(text: impl AsRef<[u8]>) -> Vec<u8> {
    let text = text.as_ref();
    [&(text.len() as u64).to_le_bytes()[..], text].concat()
}

impl Builder {
    pub(crate) fn new() -> Builder {
        Builder { version: 3, alignment: 32, entries: Vec::new(), tensors: Vec::new(), data: Vec::new() }
    }

    pub(crate) fn version(mut self, version: u32) -> Builder {
        self.version = version;
        self
    }

    /// Where the data starts and tensors are placed; does not write `general.alignment`.
    pub(crate) fn aligned(mut self, alignment: usize) -> Builder {
        self.alignment = alignment;
        self
    }

    /// A metadata entry with its value as raw bytes.
    pub(crate) fn entry(mut self, key: impl AsRef<[u8]>, value_type: u32, value: &[u8]) -> Builder {
        self.entries.push([&text(key)[..], &value_type.to_le_bytes(), value].concat());
        self
    }

    pub(crate) fn u32(self, key: &str, value: u32) -> Builder {
        self.entry(key, 4, &value.to_le_bytes())
    }

    pub(crate) fn f32(self, key: &str, value: f32) -> Builder {
        self.entry(key, 6, &value.to_le_bytes())
    }

    pub(crate) fn string(self, key: &str, value: &str) -> Builder {
        let value = text(value);
        self.entry(key, 8, &value)
    }

    pub(crate) fn strings(self, key: &str, values: &[&str]) -> Builder {
        let mut bytes = 8_u32.to_le_bytes().to_vec();
        bytes.extend((values.len() as u64).to_le_bytes());
        values.iter().for_each(|value| bytes.extend(text(value)));
        self.entry(key, 9, &bytes)
    }

    /// A tensor with its dimensions as in the file (fastest first), behind those added before.
    pub(crate) fn tensor(mut self, name: &str, dims: &[u64], type_id: u32, data: &[u8]) -> Builder {
        self.data.resize(self.data.len().next_multiple_of(self.alignment), 0);
        let offset = self.data.len() as u64;
        self.data.extend(data);
        self.place(name, dims, type_id, offset)
    }

    /// A tensor's description with an offset of its own and no data.
    pub(crate) fn place(mut self, name: &str, dims: &[u64], type_id: u32, offset: u64) -> Builder {
        self.tensors.push((name.to_owned(), dims.to_vec(), type_id, offset));
        self
    }

    pub(crate) fn build(&self) -> Vec<u8> {
        let mut file = b"GGUF".to_vec();
        file.extend(self.version.to_le_bytes());
        file.extend((self.tensors.len() as u64).to_le_bytes());
        file.extend((self.entries.len() as u64).to_le_bytes());
        self.entries.iter().for_each(|entry| file.extend(entry));
        for (name, dims, type_id, offset) in &self.tensors {
            file.extend(text(name));
            file.extend((dims.len() as u32).to_le_bytes());
            dims.iter().for_each(|dim| file.extend(dim.to_le_bytes()));
            file.extend(type_id.to_le_bytes());
            file.extend(offset.to_le_bytes());
        }
        if !self.tensors.is_empty() {
            file.resize(file.len().next_multiple_of(self.alignment), 0);
            file.extend(&self.data);
        }
        file
    }
}
