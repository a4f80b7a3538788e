"""The specification's door for experiment types of your own. The types themselves are in `lorastudy.suite`."""
