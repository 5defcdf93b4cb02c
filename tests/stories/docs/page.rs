//! A page of the documentation: what a reader can click, type and look up in it.

use std::collections::BTreeSet;

use pulldown_cmark::{CodeBlockKind, Event, HeadingLevel, Options, Parser, Tag, TagEnd};

/// What of a page can be wrong.
#[derive(Debug, Default)]
pub(crate) struct Page {
    /// From the top of the repository.
    pub(crate) path: String,
    /// Where its links and pictures point to.
    pub(crate) links: Vec<String>,
    /// What others can point to.
    pub(crate) anchors: BTreeSet<String>,
    /// Its headings of the third level and below, where pages by symptom have the symptoms.
    pub(crate) symptoms: Vec<String>,
    pub(crate) blocks: Vec<Block>,
    /// Code within a sentence.
    pub(crate) spans: Vec<String>,
}

/// A block of code.
#[derive(Debug)]
pub(crate) struct Block {
    /// The heading of the second level that it stands below.
    pub(crate) section: String,
    /// What is said behind the fence; none where there is no fence.
    pub(crate) language: Option<String>,
    pub(crate) text: String,
}

impl Page {
    pub(crate) fn read(path: &str, text: &str) -> Self {
        let mut page = Self { path: path.to_owned(), ..Self::default() };
        let (mut block, mut heading, mut section) = (None::<Block>, None::<String>, String::new());
        for event in Parser::new_ext(text, Options::ENABLE_TABLES) {
            match event {
                Event::Start(Tag::Link { dest_url, .. } | Tag::Image { dest_url, .. }) => {
                    page.links.push(dest_url.into_string());
                }
                Event::Start(Tag::CodeBlock(kind)) => {
                    let language = match kind {
                        CodeBlockKind::Fenced(language) => Some(language.into_string()),
                        CodeBlockKind::Indented => None,
                    };
                    block = Some(Block { section: section.clone(), language, text: String::new() });
                }
                Event::End(TagEnd::CodeBlock) => page.blocks.extend(block.take()),
                Event::Start(Tag::Heading { .. }) => heading = Some(String::new()),
                Event::End(TagEnd::Heading(level)) => {
                    let heading = heading.take().unwrap_or_default();
                    page.add_anchor(&heading);
                    match level {
                        HeadingLevel::H1 => {}
                        HeadingLevel::H2 => section = heading,
                        _ => page.symptoms.push(heading),
                    }
                }
                Event::Text(text) => match (&mut block, &mut heading) {
                    (Some(block), _) => block.text.push_str(&text),
                    (None, Some(heading)) => heading.push_str(&text),
                    (None, None) => {}
                },
                Event::Code(code) => {
                    if let Some(heading) = &mut heading {
                        heading.push_str(&code);
                    }
                    page.spans.push(code.into_string());
                }
                _ => {}
            }
        }
        page
    }

    /// As GitHub names it; the second of its name gets a number.
    fn add_anchor(&mut self, heading: &str) {
        let kept = heading.chars().filter(|c| c.is_alphanumeric() || matches!(c, ' ' | '-' | '_'));
        let anchor: String = kept.flat_map(char::to_lowercase).map(|c| if c == ' ' { '-' } else { c }).collect();
        let numbered = (1..).map(|number| format!("{anchor}-{number}"));
        let free = [anchor.clone()].into_iter().chain(numbered).find(|anchor| !self.anchors.contains(anchor));
        self.anchors.extend(free);
    }
}
