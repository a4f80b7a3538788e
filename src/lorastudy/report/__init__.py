"""From analysis to a report a reader can act on: Markdown, plots and one offline HTML file."""
