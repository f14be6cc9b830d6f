// Draws the report's figures. A chart is drawn when it comes near the view: a page of many opens at once.
(() => {
  const { figures, config } = JSON.parse(document.getElementById("figures").textContent);
  const draw = (chart) => {
    const { data, layout } = figures[chart.id];
    Plotly.newPlot(chart, data, layout, config);
  };
  const near = new IntersectionObserver(
    (entries) =>
      entries.filter((entry) => entry.isIntersecting).forEach(({ target }) => {
        near.unobserve(target);
        draw(target);
      }),
    { rootMargin: "600px" },
  );
  const charts = document.querySelectorAll(".chart");
  charts.forEach((chart) => near.observe(chart));
  addEventListener("beforeprint", () => charts.forEach((chart) => chart.data || draw(chart)));
})();
