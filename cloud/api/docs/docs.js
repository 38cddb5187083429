// Draws /openapi.json. Everything is put into the page as text, never as HTML,
// so that the document cannot bring script with it.

const methods = ["get", "post", "put", "patch", "delete"];

/** el makes an element; children are nodes or strings. */
function el(name, attributes, ...children) {
  const node = document.createElement(name);
  for (const [k, v] of Object.entries(attributes ?? {})) node.setAttribute(k, v);
  node.append(...children.filter((c) => c !== undefined && c !== ""));
  return node;
}

/** prose turns paragraphs and `code` of a description into nodes. */
function prose(text) {
  return (text ?? "").split("\n\n").filter(Boolean).map((paragraph) =>
    el("p", {}, ...paragraph.split("`").map((part, i) => (i % 2 ? el("code", {}, part) : part))));
}

/** resolve follows $ref inside the document. */
function resolve(doc, schema) {
  let s = schema ?? {};
  for (let i = 0; s.$ref && i < 20; i++) {
    s = s.$ref.slice(2).split("/").reduce((at, key) => at?.[key.replaceAll("~1", "/").replaceAll("~0", "~")], doc) ?? {};
  }
  return s;
}

function nameOf(schema) {
  return schema.$ref?.split("/").pop();
}

function typeOf(doc, schema) {
  const s = resolve(doc, schema);
  const types = [s.type ?? "any"].flat();
  const main = types[0] === "array" ? `${typeOf(doc, s.items)}[]` : (nameOf(schema) ?? types[0]);
  return [main, ...types.slice(1)].join(" | ") + (s.format ? ` (${s.format})` : "");
}

function limits(s) {
  const said = [];
  if (s.enum) said.push(s.enum.join(", "));
  if (s.minimum !== undefined || s.maximum !== undefined) said.push(`${s.minimum ?? "…"} to ${s.maximum ?? "…"}`);
  if (s.maxLength !== undefined) said.push(`at most ${s.maxLength} characters`);
  if (s.default !== undefined) said.push(`default ${JSON.stringify(s.default)}`);
  if (s.writeOnly) said.push("never shown");
  return said.join("; ");
}

/** example makes a value of a schema: its own example, or one from its parts. */
function example(doc, schema, depth = 0) {
  const s = resolve(doc, schema);
  if (s.examples?.length) return s.examples[0];
  if (s.default !== undefined) return s.default;
  if (s.enum) return s.enum[0];
  if (depth > 6) return null;
  switch ([s.type].flat()[0]) {
    case "object": {
      const out = {};
      for (const [name, p] of Object.entries(s.properties ?? {})) {
        const required = s.required?.includes(name);
        if (required || resolve(doc, p).examples?.length) out[name] = example(doc, p, depth + 1);
      }
      return out;
    }
    case "array": return [example(doc, s.items, depth + 1)];
    case "integer": case "number": return s.minimum ?? 0;
    case "boolean": return false;
    case "string": return "";
  }
  return null;
}

/** fields lists the properties of an object schema, nested ones with their path. */
function fields(doc, schema, prefix = "", seen = []) {
  const s = resolve(doc, schema);
  const name = nameOf(schema);
  if (seen.includes(name) || seen.length > 4) return [];
  const rows = [];
  for (const [key, p] of Object.entries(s.properties ?? {})) {
    const path = prefix + key;
    const required = s.required?.includes(key);
    rows.push(row(path, typeOf(doc, p), required, p, resolve(doc, p)));
    const r = resolve(doc, p);
    const inner = [r.type].flat()[0] === "array" ? r.items : p;
    rows.push(...fields(doc, inner, [r.type].flat()[0] === "array" ? `${path}[].` : `${path}.`, name ? [...seen, name] : seen));
  }
  return rows;
}

function row(name, type, required, p, resolved) {
  return el("tr", {},
    el("td", {}, el("code", {}, name), required ? "" : el("span", { class: "note" }, " optional")),
    el("td", {}, type),
    el("td", {}, p.description ?? resolved.description ?? "", el("div", { class: "note" }, limits({ ...resolved, ...p }))));
}

function table(rows) {
  return rows.length ? el("table", {}, el("tbody", {}, ...rows)) : "";
}

function body(doc, content) {
  const out = [];
  for (const [type, media] of Object.entries(content ?? {})) {
    const value = media.example ?? example(doc, media.schema);
    const text = typeof value === "string" ? value : JSON.stringify(value, null, 2);
    out.push(el("div", { class: "note" }, type), el("pre", {}, el("code", {}, text)), table(fields(doc, media.schema)));
  }
  return out;
}

function credentials(doc, operation) {
  const names = (operation.security ?? doc.security ?? []).flatMap((s) => Object.keys(s));
  return names.length ? `Credentials: ${names.join(" or ")}.` : "No credentials needed.";
}

function operationSection(doc, path, method, operation) {
  const parameters = (operation.parameters ?? []).map((p) => row(`${p.name} (${p.in})`, typeOf(doc, p.schema), p.required, p, resolve(doc, p.schema)));
  const good = [];
  const bad = [];
  for (const [status, answer] of Object.entries(operation.responses ?? {})) {
    (status < "400" ? good : bad).push([status, answer]);
  }
  return el("section", { id: operation.operationId },
    el("h3", {}, operation.summary ?? operation.operationId),
    el("div", {}, el("span", { class: "method" }, method.toUpperCase()), el("code", {}, path)),
    ...prose(operation.description),
    el("p", { class: "note" }, credentials(doc, operation)),
    parameters.length ? el("h4", {}, "Parameters") : "", table(parameters),
    ...(operation.requestBody ? [el("h4", {}, "Body"), ...body(doc, operation.requestBody.content)] : []),
    ...good.flatMap(([status, answer]) => [el("h4", {}, `${status} ${answer.description ?? ""}`), ...body(doc, answer.content)]),
    bad.length ? el("p", { class: "note" }, "Errors: " + bad.map(([status, answer]) => `${status} ${answer.description ?? ""}`).join(", ") + ".") : "");
}

function draw(doc) {
  const groups = new Map((doc.tags ?? []).map((t) => [t.name, { description: t.description, operations: [] }]));
  for (const [path, item] of Object.entries(doc.paths ?? {})) {
    for (const method of methods) {
      const operation = item[method];
      if (!operation) continue;
      const tag = operation.tags?.[0] ?? "other";
      if (!groups.has(tag)) groups.set(tag, { operations: [] });
      groups.get(tag).operations.push({ path, method, operation });
    }
  }
  const main = [el("h1", {}, `${doc.info.title} API`, el("span", { class: "note" }, ` ${doc.info.version}`)), ...prose(doc.info.description)];
  for (const [name, scheme] of Object.entries(doc.components?.securitySchemes ?? {})) {
    main.push(el("p", {}, el("strong", {}, name), ": ", ...prose(scheme.description).flatMap((p) => [...p.childNodes])));
  }
  main.push(el("p", {}, el("a", { href: "/openapi.json" }, "/openapi.json")));
  const contents = [];
  for (const [name, group] of groups) {
    main.push(el("h2", { id: name }, name), ...prose(group.description));
    const links = [];
    for (const { path, method, operation } of group.operations) {
      main.push(operationSection(doc, path, method, operation));
      links.push(el("li", {}, el("a", { href: `#${operation.operationId}` }, operation.summary ?? operation.operationId)));
    }
    contents.push(el("h2", {}, name), el("ul", {}, ...links));
  }
  document.getElementById("document").replaceChildren(...main.filter(Boolean));
  document.getElementById("contents").replaceChildren(...contents);
  // The browser looked for the fragment before it was there.
  if (location.hash) document.getElementById(decodeURIComponent(location.hash.slice(1)))?.scrollIntoView();
}

try {
  const answer = await fetch("/openapi.json");
  if (!answer.ok) throw new Error(`status ${answer.status}`);
  draw(await answer.json());
} catch (err) {
  document.getElementById("document").replaceChildren(el("p", {}, `The document cannot be shown: ${err.message}.`));
}
