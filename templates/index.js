"use strict";
(() => {
  const rows = [...document.querySelectorAll("tbody tr")];
  const fields = [...document.querySelectorAll("[data-field]")];
  const count = document.getElementById("count");
  const filter = () => {
    let shown = 0;
    for (const row of rows) {
      row.hidden = !fields.every((field) => {
        const wanted = field.value.trim().toLowerCase();
        if (!wanted) return true;
        if (field.dataset.field === "text") return row.textContent.toLowerCase().includes(wanted);
        return row.dataset[field.dataset.field].toLowerCase() === wanted;
      });
      shown += !row.hidden;
    }
    count.textContent = `${shown} of ${rows.length} runs`;
  };
  for (const field of fields) field.addEventListener("input", filter);
  document.getElementById("filters").hidden = false;
  filter();
})();
