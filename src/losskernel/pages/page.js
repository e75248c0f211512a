"use strict";
// What all pages share: reading the data that a page carries, and building elements.
// Text from the data becomes text nodes only, never HTML.

const byId = (id) => document.getElementById(id);

async function unpacked(id) {
  const bytes = Uint8Array.from(atob(byId(id).textContent), (c) => c.charCodeAt(0));
  const stream = new Blob([bytes]).stream().pipeThrough(new DecompressionStream("gzip"));
  return new Response(stream).arrayBuffer();
}

async function unpackedData(id) {
  const buffer = await unpacked(id);
  const length = Number(new DataView(buffer).getBigUint64(0, true));
  const header = new TextDecoder().decode(new Uint8Array(buffer, 8, length));
  return JSON.parse(header, (_, value) =>
    value && value.array
      ? new globalThis[value.array](buffer, 8 + length + value.at, value.length)
      : value
  );
}

function element(tag, properties = {}, ...children) {
  const made = document.createElement(tag);
  for (const [name, value] of Object.entries(properties)) {
    if (name.startsWith("aria-") || name.startsWith("data-")) made.setAttribute(name, value);
    else made[name] = value;
  }
  made.append(...children.filter((child) => child !== null));
  return made;
}

const picture = (base64, name) =>
  base64 && element("img", { src: `data:image/jpeg;base64,${base64}`, alt: name });

const number = (value) =>
  Math.abs(value) < 1e-3 && value !== 0 ? value.toExponential(2) : Number(value.toPrecision(3)).toString();
