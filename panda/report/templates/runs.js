(function () {
  var form = document.getElementById("filter");
  if (!form) return;
  var fields = Array.from(form.querySelectorAll("input, select")), status = document.getElementById("shown");
  var groups = Array.from(document.querySelectorAll("[data-words]")).map(function (box) {
    var table = box.querySelector("table");
    var heads = Array.from(table.tHead.rows[0].cells).map(function (head) {
      return (head.querySelector("button") || head).firstChild.textContent.trim().toLowerCase();
    });
    var shared = box.dataset.words.toLowerCase().split("\n");
    return { box: box, rows: Array.from(table.tBodies[0].rows).map(function (row) {
      var words = shared.slice();
      Array.from(row.cells).forEach(function (cell, k) {
        var text = cell.textContent.trim().toLowerCase();
        words.push(heads[k] + "=" + text);
        words.push.apply(words, text.split(/\s+/));
      });
      return { row: row, words: words, text: words.join("\n") };
    }) };
  });
  function filter() {
    var exact = [], typed = [];
    fields.forEach(function (field) {
      var value = field.value.trim().toLowerCase();
      if (field.tagName === "SELECT") { if (value) exact.push(value); }
      else typed = value.split(/\s+/).filter(Boolean);
    });
    groups.forEach(function (group) {
      var count = 0;
      group.rows.forEach(function (one) {
        var fits = exact.every(function (word) { return one.words.indexOf(word) >= 0; }) &&
          typed.every(function (word) { return one.text.indexOf(word) >= 0; });
        one.row.hidden = !fits;
        count += fits;
      });
      group.box.hidden = !count && group.box.tagName === "SECTION";
      if (group.box.id === "all") status.textContent = count + " of " + group.rows.length + " runs";
    });
  }
  form.addEventListener("submit", function (event) { event.preventDefault(); });
  form.addEventListener("input", filter);
  form.addEventListener("reset", function () { setTimeout(filter); });
  filter();
})();
