// Charts and the table react to each other; every text that comes from data is set as text.
(async () => {
  const payload = JSON.parse(byId("payload").textContent);
  const narrowed = new Map();
  const drawn = new Map();
  let shown = [];

  const draw = async (element, spec, narrows) => {
    drawn.set(element, [spec, narrows]);
    const view = await drawChart(element, spec);
    if (narrows) {
      narrowed.set(element, view);
      await view.signal("shown", shown).runAsync();
    }
  };

  const narrow = async (ids) => {
    shown = ids;
    for (const view of narrowed.values()) await view.signal("shown", ids).runAsync();
  };

  // The table: a widget from itables (DataTables), kept as text so that nothing is fetched.
  const code = atob(byId("table-code").textContent);
  const bytes = Uint8Array.from(code, (letter) => letter.charCodeAt(0));
  const url = URL.createObjectURL(new Blob([bytes], { type: "text/javascript" }));
  const { default: DataTable } = await import(url);
  URL.revokeObjectURL(url);
  const setDark = () => document.documentElement.classList.toggle("dark", dark.matches);
  setDark();

  const widgetOf = (element, options) => new DataTable(element, { autoWidth: false, ...options });
  const n = document.querySelectorAll("#lines tbody tr").length;
  const table = widgetOf("#lines", {
    order: [],
    paging: n > 25,
    pageLength: 25,
    info: true,
    columnDefs: [{ targets: [0, -1], orderable: false, searchable: false }],
    language: { search: "Search:" },
  });
  const ticked = new Set();
  const first = table.rows("[data-drawn]").nodes().toArray().map((row) => row.dataset.line);
  const refresh = () => {
    const ids = table.rows({ search: "applied" }).nodes().toArray().map((row) => row.dataset.line);
    const chosen = ticked.size ? ids.filter((id) => ticked.has(id)) : ids;
    narrow(!ticked.size && ids.length === n ? first : chosen.length ? chosen : ["none"]);
  };
  table.on("search.dt", refresh);
  for (const select of document.querySelectorAll("[data-filter]")) {
    select.addEventListener("change", () => {
      const exact = (text) => text === select.value || select.value === "";
      table.column(Number(select.dataset.filter)).search(select.value ? exact : "").draw();
    });
  }
  byId("lines").addEventListener("change", (event) => {
    if (!event.target.matches(".tick")) return;
    ticked[event.target.checked ? "add" : "delete"](event.target.value);
    refresh();
  });
  byId("clear").addEventListener("click", () => {
    ticked.clear();
    for (const box of table.rows().nodes().to$().find(".tick")) box.checked = false;
    for (const select of document.querySelectorAll("[data-filter]")) select.value = "";
    table.search("").columns().search("").draw();
    refresh();
  });

  // One line.
  const fill = (element, head, rows) => {
    const parts = [];
    if (head) {
      const line = document.createElement("tr");
      line.append(...head.map((text) => Object.assign(cell("th", text), { scope: "col" })));
      const top = document.createElement("thead");
      top.append(line);
      parts.push(top);
    }
    const body = document.createElement("tbody");
    for (const row of rows) {
      const line = document.createElement("tr");
      line.append(...row.map((text) => cell("td", text)));
      body.append(line);
    }
    element.replaceChildren(...parts, body);
  };
  const copy = (spec, values) => Object.assign(structuredClone(spec), { data: { values } });
  const show = (id, is) => { byId(id).hidden = !is; };
  const mostBars = 40;
  let classes = null;

  const open = async (id, name) => {
    const detail = payload.details[id];
    byId("line-name").textContent = detail ? name
      : `${name}: this page had no room for its details, or its records are gone.`;
    show("line-body", Boolean(detail));
    byId("line").scrollIntoView();
    if (!detail) return;
    const said = [...detail.errors.map((text) => `failed: ${text}`), ...detail.notes];
    byId("line-notes").replaceChildren(...said.map((text) => cell("p", text)));
    fill(byId("line-made"), null, Object.entries(detail.made));
    byId("line-command").textContent = detail.command;
    show("line-again", detail.command !== "");
    fillLeaks(detail.leaks);
    const mistakes = detail.mistakes ?? [];
    show("part-mistakes", mistakes.length > 0);
    byId("line-mistakes").replaceChildren(...mistakes.map((m) =>
      pictured([payload.pictures[m.picture]], [m.path, `label: ${m.label}`, `taken for ${m.guess}`])));
    const scored = detail.classes ?? [];
    for (const part of ["part-confusion", "part-recall"]) show(part, scored.length > 0);
    show("part-training", detail.curves.length > 0);
    show("part-calibration", detail.calibration.length > 0);
    if (classes) classes.destroy();
    fill(byId("line-confused"), ["true", "taken for", "images a draw", "share"],
      (detail.confused ?? []).map((p) => [p.true, p.predicted, p.images, p.share.toFixed(3)]));
    fill(byId("line-classes"), ["class", "precision", "recall", "F1", "test images"],
      scored.map((c) => [c.class, c.precision, c.recall, c.f1, c.images]));
    classes = widgetOf("#line-classes", { paging: scored.length > 15, pageLength: 15, order: [] });
    if (scored.length) await drawClasses(detail, scored);
    if (detail.calibration.length) {
      const spec = structuredClone(payload.charts.calibration);
      spec.layer[0].data = { values: detail.calibration };
      await draw(byId("line-calibration"), spec);
    }
    if (detail.curves.length)
      await draw(byId("line-training"), copy(payload.charts.training, detail.curves));
  };

  const drawClasses = async (detail, scored) => {
    const names = scored.map((c) => c.class);
    const totals = names.map(() => 0);
    for (const [i, , images] of detail.cells) totals[i] += images;
    const values = detail.cells.map(([i, j, images]) => (
      { true: names[i], predicted: names[j], images, share: images / totals[i] }));
    const spec = copy(payload.charts.confusion, values);
    for (const axis of ["x", "y"]) spec.encoding[axis].scale = { domain: names };
    await draw(byId("line-confusion"), spec);
    const worst = scored.length > mostBars
      ? [...scored].sort((a, b) => a.recall - b.recall).slice(0, mostBars) : scored;
    byId("recall-note").textContent = scored.length > mostBars
      ? `The ${mostBars} lowest of ${scored.length}; the table below has all.` : "";
    await draw(byId("line-recall"), copy(payload.charts.recall, worst));
  };

  const fillLeaks = (leaks) => {
    const kinds = Object.entries(leaks.kinds ?? {});
    const lines = kinds.map(([kind, number]) => cell("p", `${kind}: ${number} of ${leaks.n_test} test images`));
    if (!kinds.length)
      lines.push(cell("p", leaks.n_test === undefined ? "Not recorded." : "None were found."));
    byId("line-leaks").replaceChildren(...lines);
    byId("line-twins").replaceChildren(...(leaks.pairs ?? []).map((pair) =>
      pictured((pair.pictures ?? []).map((key) => payload.pictures[key]), [pair.kind, pair.test, pair.train])));
  };

  byId("lines").addEventListener("click", (event) => {
    const button = event.target.closest(".open");
    if (button) open(button.value, button.dataset.name);
  });

  for (const text of document.querySelectorAll("script.spec"))
    await draw(byId(text.dataset.for), JSON.parse(text.textContent), text.dataset.narrow === "yes");
  await narrow(first);
  dark.addEventListener("change", () => {
    setDark();
    for (const [element, [spec, narrows]] of [...drawn]) draw(element, spec, narrows);
  });
  document.documentElement.dataset.ready = "yes";
})();
