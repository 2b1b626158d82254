// What pages share; every text that comes from data is set as text.
"use strict";
const byId = (id) => document.getElementById(id);
const dark = matchMedia("(prefers-color-scheme: dark)");

const chartLook = () => {
  const style = getComputedStyle(document.documentElement);
  const [ink, line] = ["--ink", "--line"].map((name) => style.getPropertyValue(name).trim());
  const axis = { labelColor: ink, titleColor: ink, gridColor: line, domainColor: line, tickColor: line };
  return {
    background: null,
    font: "system-ui, sans-serif",
    axis,
    legend: { labelColor: ink, titleColor: ink },
    rule: { color: ink },
    view: { stroke: line },
  };
};

const drawChart = async (element, spec) => {
  const result = await vegaEmbed(element, spec, {
    renderer: "svg",
    logLevel: 1, // errors only
    config: chartLook(),
    actions: { export: true, source: false, compiled: false, editor: false },
  });
  element.querySelector("summary")?.setAttribute("aria-label", "save this chart");
  return result.view;
};

const cell = (kind, text) => {
  const made = document.createElement(kind);
  made.textContent = text;
  return made;
};

// A list item of images, where they are there, above lines of text.
const pictured = (urls, lines) => {
  const item = document.createElement("li");
  for (const url of urls.filter(Boolean))
    item.append(Object.assign(new Image(), { src: url, alt: "" }));
  item.append(...lines.map((text) => cell("span", text)));
  return item;
};
