document.querySelectorAll("table.sortable th button").forEach(function (button) {
  button.addEventListener("click", function () {
    var head = button.parentElement, body = head.closest("table").tBodies[0];
    var column = head.cellIndex, up = head.getAttribute("aria-sort") !== "ascending";
    head.parentElement.querySelectorAll("th").forEach(function (th) { th.removeAttribute("aria-sort"); });
    head.setAttribute("aria-sort", up ? "ascending" : "descending");
    Array.from(body.rows).sort(function (a, b) {
      var x = a.cells[column].dataset.sort, y = b.cells[column].dataset.sort;
      if (x === "" || y === "") return (x === "") - (y === "");
      var order = head.dataset.figures ? x - y : x.localeCompare(y, undefined, { numeric: true });
      return up ? order : -order;
    }).forEach(function (row) { body.appendChild(row); });
  });
});
