// Cards of suspicious labels. Ticks live in this page and, where the browser lets a file keep them,
// in its storage, until they are exported as CSV for `losskernel mislabel apply`.

const VERDICTS = ["wrong", "right", "not sure"];
const data = JSON.parse(byId("data").textContent);
const STORE = `losskernel ${location.pathname}`;
let ticks = {}; // by the name of an input: { verdict, label }
try {
  ticks = JSON.parse(localStorage.getItem(STORE)) ?? {};
} catch { /* storage is refused, or holds something else: begin anew */ }

function keep() {
  try {
    localStorage.setItem(STORE, JSON.stringify(ticks));
  } catch { /* the export still has them */ }
  tell();
}

function tell() {
  const ticked = data.cards.filter((card) => ticks[data.names[card.input]]?.verdict);
  const wrong = ticked.filter((card) => ticks[data.names[card.input]].verdict === "wrong");
  byId("status").textContent = `${ticked.length} of ${data.cards.length} ticked, ${wrong.length} as wrong`;
}

function neighbors(title, these) {
  const items = these.map(({ input, r }) =>
    element("li", {}, element("span", { title: data.names[input] },
      picture(data.small[input], data.names[input]) || null,
      element("span", { className: r < 0 ? "negative" : "positive", textContent: r.toFixed(2) }),
      ` ${data.given[input]}`)));
  return element("section", {}, element("h3", { textContent: title }), element("ol", { className: "neighbors" }, ...items));
}

function card(one, rank) {
  const name = data.names[one.input];
  const facts = element("dl");
  const fact = (term, value) => facts.append(element("dt", { textContent: term }), element("dd", { textContent: value }));
  fact("given", data.given[one.input]);
  fact("suggested", one.suggested ? `${one.suggested} (${Math.round(100 * one.share)} %)` : "none");
  for (const [term, value] of Object.entries(one.scores)) fact(term, number(value));
  const label = element("input", { type: "text", value: ticks[name]?.label ?? one.suggested, "aria-label": `right label of ${name}` });
  label.setAttribute("list", "labels");
  const choices = VERDICTS.map((verdict) => {
    const box = element("input", { type: "radio", name: `verdict ${rank}`, value: verdict, checked: ticks[name]?.verdict === verdict });
    box.onchange = () => { ticks[name] = { verdict, label: label.value }; keep(); };
    return element("label", {}, box, ` ${verdict}`);
  });
  label.oninput = () => { ticks[name] = { verdict: ticks[name]?.verdict ?? "", label: label.value }; keep(); };
  return element("article", { className: "card", "data-name": name },
    element("div", {}, picture(data.large[one.input], name) || null),
    element("div", {},
      element("h2", { textContent: `${rank}. ${name}` }), facts,
      element("fieldset", {}, element("legend", { textContent: "The given label is" }), ...choices,
        element("label", {}, " It should be ", label)),
      neighbors("nearest (R)", one.nearest), neighbors("most opposed (R)", one.opposed)));
}

function filter() {
  const wanted = byId("filter").value;
  for (const shown of byId("cards").children) {
    const verdict = ticks[shown.dataset.name]?.verdict ?? "";
    shown.hidden = (wanted === "open" && verdict !== "") || (wanted === "wrong" && verdict !== "wrong");
  }
}

function quoted(text) {
  return /[",\r\n]/.test(text) ? `"${text.replaceAll('"', '""')}"` : text;
}

function csv() {
  const rows = data.cards.map(({ input }) => {
    const { verdict = "", label = "" } = ticks[data.names[input]] ?? {};
    return [data.names[input], data.given[input], verdict, verdict === "wrong" ? label : ""];
  }).filter(([, , verdict]) => verdict !== "");
  return [["name", "given_label", "verdict", "new_label"], ...rows].map((row) => row.map(quoted).join(",") + "\n").join("");
}

byId("ranked").textContent = `The ${data.cards.length} most suspicious of ${data.of} labels, by ${data.score}, most suspicious first.`;
byId("note").textContent = data.note;
byId("labels").append(...data.labels.map((value) => element("option", { value })));
byId("cards").append(...data.cards.map((one, i) => card(one, i + 1)));
byId("filter").onchange = filter;
byId("export").onclick = () => {
  const url = URL.createObjectURL(new Blob([csv()], { type: "text/csv" }));
  element("a", { href: url, download: "ticks.csv" }).click();
  setTimeout(() => URL.revokeObjectURL(url), 1000);
};
tell();
