// The reader: a text, coloured by who wrote each token, step by step. Texts of a run are only ever set as text.
(() => {
  const KINDS = { recovered: "recovered", bonus: "bonus", undrafted: "undrafted" };

  const element = (parent, tag, classes = "", text = "") => {
    const made = document.createElement(tag);
    made.className = classes;
    made.textContent = text;
    parent.append(made);
    return made;
  };

  function start(root) {
    const { texts } = JSON.parse(root.querySelector("script").textContent);
    const bar = element(root, "div", "bar");
    const choice = element(bar, "select");
    choice.setAttribute("aria-label", "text");
    texts.forEach((text, i) => (element(choice, "option", "", text.name).value = i));
    const back = element(bar, "button", "back", "◀ step");
    const slider = element(bar, "input");
    slider.type = "range";
    slider.min = 0;
    slider.setAttribute("aria-label", "step");
    const forth = element(bar, "button", "forth", "step ▶");
    const details = element(root, "details");
    element(details, "summary", "", "prompt");
    const prompt = element(details, "div", "prompt");
    const body = element(root, "div", "text");
    const facts = element(root, "div", "facts");
    let text, tokens;

    function open(index) {
      text = texts[index];
      prompt.textContent = text.prompt;
      body.replaceChildren();
      tokens = [];
      const add = (step, kind, depth) => {
        const piece = text.pieces[tokens.length];
        const token = element(body, "span", `tok ${kind}`, piece);
        token.style.setProperty("--depth", depth);
        token.title = kind === "accepted" ? `step ${step}: accepted at depth ${depth}` : step ? `step ${step}: ${kind}` : "from the prompt's forward";
        token.addEventListener("click", () => show(step));
        token.step = step;
        tokens.push(token);
      };
      add(0, KINDS.undrafted, 0);
      text.steps.forEach(([accepted, emitted, , , closing], i) => {
        for (let place = 1; place <= emitted; place++) {
          add(i + 1, place <= accepted ? "accepted" : KINDS[closing], place);
        }
      });
      slider.max = text.steps.length;
      show(text.steps.length);
    }

    function show(step) {
      step = Math.max(0, Math.min(text.steps.length, step));
      slider.value = step;
      for (const token of tokens) {
        token.classList.toggle("later", token.step > step);
        token.classList.toggle("now", token.step === step && step < text.steps.length);
      }
      const current = body.querySelector(".now");
      if (current) body.scrollTop = Math.max(0, current.offsetTop - body.offsetTop - body.clientHeight / 2);
      facts.replaceChildren();
      element(element(facts, "div"), "b", "", `step ${step} of ${text.steps.length}`);
      if (step) {
        const [accepted, emitted, nodes, offered, closing, ms, live] = text.steps[step - 1];
        element(facts, "div", "", `drafted: ${nodes} nodes, ${offered} deep`);
        element(facts, "div", "", `accepted: ${accepted}`);
        element(facts, "div", "", `emitted: ${emitted}${closing ? `, the last one ${closing}` : ", and the text ended"}`);
        element(facts, "div", "", `time: ${ms.toFixed(1)} ms${live > 1 ? ` for ${live} rows` : ""}`);
        const so_far = text.steps.slice(0, step).reduce((sum, [, n]) => sum + n, 0);
        element(facts, "div", "", `so far: ${so_far} tokens, τ ${(so_far / step).toFixed(2)}`);
      } else {
        element(facts, "div", "", "The first token comes from the prompt's forward and belongs to no step.");
      }
    }

    choice.addEventListener("change", () => open(Number(choice.value)));
    slider.addEventListener("input", () => show(Number(slider.value)));
    back.addEventListener("click", () => show(Number(slider.value) - 1));
    forth.addEventListener("click", () => show(Number(slider.value) + 1));
    open(0);
  }

  document.querySelectorAll(".reader").forEach(start);
})();
