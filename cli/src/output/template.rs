//! The part of docker's `--format` templates that people use: `{{.Name}}`, `{{.Spec.Name}}`, `{{json .}}`,
//! `{{json .Ports}}`, literal text, `\t` and `\n`.

use serde_json::Value;

/// A parsed template.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) struct Template {
    parts: Vec<Part>,
}

#[derive(Debug, Clone, PartialEq, Eq)]
enum Part {
    Text(String),
    Field { path: Vec<String>, json: bool },
}

/// Why a template is refused or cannot be filled in.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub(crate) enum TemplateError {
    /// `{{` without `}}`.
    #[error("the template '{0}' has '{{{{' without '}}}}'")]
    Unclosed(String),
    /// Something other than a field or `json` of one.
    #[error("'{{{{{0}}}}}' is not understood; fields ({{{{.Name}}}}) and json ({{{{json .}}}}) are")]
    Unknown(String),
    /// A field the object has not.
    #[error("no field '.{field}'; there are {known}")]
    NoField {
        /// The path asked for.
        field: String,
        /// What there is at that level.
        known: String,
    },
}

impl Template {
    /// Parses a template.
    pub(crate) fn parse(text: &str) -> Result<Self, TemplateError> {
        let mut parts = Vec::new();
        let mut rest = text;
        while let Some((literal, tail)) = rest.split_once("{{") {
            push_text(&mut parts, literal);
            let (action, tail) =
                tail.split_once("}}").ok_or_else(|| TemplateError::Unclosed(text.to_owned()))?;
            parts.push(parse_action(action)?);
            rest = tail;
        }
        push_text(&mut parts, rest);
        Ok(Self { parts })
    }

    /// Fills the template in.
    pub(crate) fn render(&self, object: &Value) -> Result<String, TemplateError> {
        let mut text = String::new();
        for part in &self.parts {
            match part {
                Part::Text(literal) => text.push_str(literal),
                Part::Field { path, json } => text.push_str(&show(find(object, path)?, *json)),
            }
        }
        Ok(text)
    }

    /// Headers and one template per column: the template split at its tabs.
    pub(crate) fn columns(&self) -> Vec<(String, Self)> {
        let mut columns = vec![Self { parts: Vec::new() }];
        for part in &self.parts {
            let pieces = match part {
                Part::Text(text) => text.split('\t').map(|t| Part::Text(t.to_owned())).collect(),
                field @ Part::Field { .. } => vec![field.clone()],
            };
            for (n, piece) in pieces.into_iter().enumerate() {
                if n > 0 {
                    columns.push(Self { parts: Vec::new() });
                }
                if let (Some(last), true) = (columns.last_mut(), piece != Part::Text(String::new())) {
                    last.parts.push(piece);
                }
            }
        }
        columns.into_iter().map(|column| (column.header(), column)).collect()
    }

    fn header(&self) -> String {
        let words = self.parts.iter().map(|part| match part {
            Part::Text(text) => text.clone(),
            Part::Field { path, .. } => path.last().map(|name| heading(name)).unwrap_or_default(),
        });
        words.collect()
    }
}

/// `CurrentState` as `CURRENT STATE`; `ID` and `VNI` stay whole.
pub(crate) fn heading(field: &str) -> String {
    let mut out = String::new();
    let mut before_lower = false;
    for c in field.chars() {
        if c.is_uppercase() && before_lower {
            out.push(' ');
        }
        before_lower = c.is_lowercase() || c.is_ascii_digit();
        out.extend(c.to_uppercase());
    }
    out
}

fn push_text(parts: &mut Vec<Part>, text: &str) {
    if !text.is_empty() {
        parts.push(Part::Text(text.replace("\\t", "\t").replace("\\n", "\n")));
    }
}

fn parse_action(action: &str) -> Result<Part, TemplateError> {
    let unknown = || TemplateError::Unknown(action.to_owned());
    let mut words = action.split_whitespace();
    let (json, path) = match (words.next(), words.next(), words.next()) {
        (Some("json"), Some(path), None) => (true, path),
        (Some(path), None, None) => (false, path),
        _ => return Err(unknown()),
    };
    let path = path.strip_prefix('.').ok_or_else(unknown)?;
    let valid =
        |name: &str| !name.is_empty() && name.chars().all(|c| c.is_alphanumeric() || "_-".contains(c));
    let path: Vec<String> =
        if path.is_empty() { Vec::new() } else { path.split('.').map(str::to_owned).collect() };
    if path.iter().all(|name| valid(name)) { Ok(Part::Field { path, json }) } else { Err(unknown()) }
}

fn find<'a>(object: &'a Value, path: &[String]) -> Result<&'a Value, TemplateError> {
    let mut at = object;
    for name in path {
        at = at.get(name.as_str()).ok_or_else(|| TemplateError::NoField {
            field: path.join("."),
            known: match at.as_object() {
                Some(fields) if !fields.is_empty() => {
                    fields.keys().map(|key| format!(".{key}")).collect::<Vec<_>>().join(" ")
                }
                _ => "no fields at that place".to_owned(),
            },
        })?;
    }
    Ok(at)
}

fn show(value: &Value, json: bool) -> String {
    match value {
        _ if json => value.to_string(),
        Value::String(text) => text.clone(),
        Value::Null => String::new(),
        other => other.to_string(),
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;
    use serde_json::json;

    use super::*;

    fn render(template: &str) -> Result<String, TemplateError> {
        let object = json!({
            "Name": "web", "Replicas": "2/3", "CurrentState": "running", "N": 3, "None": null,
            "Spec": { "Name": "inner", "Ports": [80] },
        });
        Template::parse(template)?.render(&object)
    }

    #[test]
    fn fields_text_and_json() {
        for (template, want) in [
            ("{{.Name}}", "web"),
            ("{{ .Name }}: {{.Replicas}}", "web: 2/3"),
            ("{{.Name}}\\t{{.N}}\\n", "web\t3\n"),
            ("{{.Spec.Name}}", "inner"),
            ("{{json .Spec}}", r#"{"Name":"inner","Ports":[80]}"#),
            ("{{json .Name}}", "\"web\""),
            ("{{.Spec.Ports}}", "[80]"),
            ("[{{.None}}]", "[]"),
            ("no fields }} at all", "no fields }} at all"),
        ] {
            assert_eq!(render(template).as_deref(), Ok(want), "{template}");
        }
        assert!(render("{{json .}}").unwrap().starts_with(r#"{"CurrentState":"running""#));
    }

    #[test]
    fn what_is_refused() {
        assert_eq!(
            render("{{.Name").unwrap_err().to_string(),
            "the template '{{.Name' has '{{' without '}}'"
        );
        for unknown in
            ["{{range .}}", "{{Name}}", "{{}}", "{{json}}", "{{upper .Name}}", "{{.A..B}}", "{{..}}"]
        {
            assert!(matches!(render(unknown), Err(TemplateError::Unknown(_))), "{unknown}");
        }
        assert_eq!(
            render("{{.Spec.Image}}").unwrap_err().to_string(),
            "no field '.Spec.Image'; there are .Name .Ports"
        );
        assert_eq!(
            render("{{.Name.X}}").unwrap_err().to_string(),
            "no field '.Name.X'; there are no fields at that place"
        );
    }

    #[test]
    fn columns_are_split_at_tabs() {
        let template = Template::parse(r"{{.Name}}\t{{.CurrentState}} ({{.N}})\t\t{{.Spec.Name}}").unwrap();
        let headers: Vec<String> = template.columns().into_iter().map(|(header, _)| header).collect();
        assert_eq!(headers, ["NAME", "CURRENT STATE (N)", "", "NAME"]);
    }

    #[test]
    fn headings() {
        for (field, want) in
            [("ID", "ID"), ("CurrentState", "CURRENT STATE"), ("VNI", "VNI"), ("Subnet6", "SUBNET6")]
        {
            assert_eq!(heading(field), want);
        }
    }

    proptest! {
        #[test]
        fn no_template_panics(text in "(\\{\\{|\\}\\}|\\.|json|Name| |\\\\t|[a-z]){0,12}") {
            let outcome = render(&text);
            prop_assert!(outcome.is_err() || !outcome.unwrap().contains("{{."));
        }
    }
}
