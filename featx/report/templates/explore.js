// The map, and the neighbours of the image that was chosen.
(async () => {
  const { points, urls, chart } = JSON.parse(byId("payload").textContent);
  chart.data = { values: points.map((p) => ({ i: p.i, x: p.x, y: p.y, path: p.path, label: p.label,
    image: urls[p.i] || undefined })) };
  byId("paths").append(...points.map((p) => Object.assign(document.createElement("option"), { value: p.path })));

  const choose = (i) => {
    const near = points[i].near.map(([j, cosine]) =>
      pictured([urls[j]], [points[j].path, `label: ${points[j].label}`, `cosine ${cosine}`]));
    const own = pictured([urls[i]], [points[i].path, `label: ${points[i].label}`, "this image"]);
    byId("near-pictures").replaceChildren(own, ...near);
    byId("which").value = points[i].path;
  };
  byId("which").addEventListener("change", (event) => {
    const found = points.find((p) => p.path === event.target.value)
      ?? points.find((p) => p.path.includes(event.target.value));
    if (found) choose(found.i);
  });
  for (const button of document.querySelectorAll(".neighbours"))
    button.addEventListener("click", () => {
      choose(Number(button.value));
      byId("near").scrollIntoView();
    });

  const draw = async () => {
    const view = await drawChart(byId("chart-map"), chart);
    view.addEventListener("click", (_, item) => {
      if (item?.datum?.i !== undefined) choose(item.datum.i);
    });
  };
  await draw();
  dark.addEventListener("change", draw);
  document.documentElement.dataset.ready = "yes";
})();
